package run

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A usage is what a process has used since it began.
type usage struct {
	CPU    time.Duration
	Allocs uint64
	Bytes  uint64
}

func usageNow() usage {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{CPU: cpuTime(), Allocs: m.Mallocs, Bytes: m.TotalAlloc}
}

func (u usage) minus(v usage) usage {
	return usage{CPU: u.CPU - v.CPU, Allocs: u.Allocs - v.Allocs, Bytes: u.Bytes - v.Bytes}
}

func (u usage) plus(v usage) usage {
	return usage{CPU: u.CPU + v.CPU, Allocs: u.Allocs + v.Allocs, Bytes: u.Bytes + v.Bytes}
}

// tick is the unit of /proc/stat.
const tick = 10 * time.Millisecond

// machineBusy returns the busy time of all CPUs since the machine booted, or 0 if the system does not
// report it.
func machineBusy() time.Duration {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	var busy time.Duration
	for i, field := range strings.Fields(first) { // cpu user nice system idle iowait irq softirq steal
		n, err := strconv.ParseInt(field, 10, 64)
		if err == nil && i != 4 && i != 5 && i < 9 {
			busy += time.Duration(n) * tick
		}
	}
	return busy
}
