//go:build linux

package prescan_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/fetchonce/fetchonce/internal/prescan"
)

const smallProcess = "FETCHONCE_SMALL_PROCESS"

// Data from a hostile writer is decoded in a process that is killed if it takes
// much memory, or nests too deep: neither can be caught. Nothing is allocated
// for what is only declared. What is there costs what Go needs for it: for each
// byte an element, and twice that as a slice grows by doubling. For bytes and maps
// that is below 16 times the data, for numbers a little above it, all that was
// allocated and freed again included; a type with larger elements costs more.
func TestHostileDataInASmallProcess(t *testing.T) {
	if os.Getenv(smallProcess) != "" {
		limitMemory(t)
		decodeHostile(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), smallProcess+"=1", "GOMEMLIMIT=256MiB")
	said, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(said, []byte("PASS: "+t.Name())) {
		t.Errorf("the process: %v\n%s", err, said)
	}
}

// limitMemory has the kernel refuse this process more memory than it has now and
// 1 GiB, of which the race detector takes the larger part.
func limitMemory(t *testing.T) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmData:")
	var has uint64
	if _, err := fmt.Sscan(rest, &has); err != nil {
		t.Fatal(err)
	}
	limit := has<<10 + 1<<30
	if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
		t.Fatal(err)
	}
}

func decodeHostile(t *testing.T) {
	t.Helper()
	many := func(element string, n int) string {
		return string([]byte{0xdd, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + strings.Repeat(element, n)
	}
	hostile := []string{
		"\xdd\x02\xff\xff\xff",                            // a slice of 50 million
		"\xc6\x7f\xff\xff\xff",                            // 2 GB of bytes
		"\xdf\x7f\xff\xff\xff\x00",                        // a map of 2 billion
		strings.Repeat("\x91", 2<<20),                     // as deep as it is long
		strings.Repeat("\x81\xa0", 1<<20),                 // likewise
		strings.Repeat("\x91", prescan.MaxDepth) + "\xc0", // as deep as may be
		"\x92" + many("\xc0", 1000) + "\xdd",              // cut off late
		many("\xdd\xff\xff\xff\xff", 100),                 // each declares more than there is
		many("\xc0", 1<<20), many("\x01", 10),             // whole, and large in memory
		many("\xa0", 1<<16), many("\x90", 1<<16), many("\x80", 1<<16), many("\x01", 1<<20),
	}
	decoded := 0
	for _, target := range []struct {
		make func() any
		most int // bytes for one of data
	}{
		{func() any { return new(string) }, 16},
		{func() any { return new([]byte) }, 16},
		{func() any { return new(map[string]string) }, 16},
		{func() any { return new([]int64) }, 2*8 + 2},
		{func() any { return new([]string) }, 2*16 + 4},
		{func() any { return new([]quad) }, 2*64 + 32},
		{func() any { return new(any) }, 2*16 + 48},
	} {
		for _, data := range hostile {
			into := target.make()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := decode([]byte(data), into)
			runtime.ReadMemStats(&after)
			took := after.TotalAlloc - before.TotalAlloc
			if most := uint64(target.most*len(data) + 64<<10); took > most {
				t.Errorf("%.8q... of %d bytes into %T took %d bytes, want at most %d", data, len(data), into, took, most)
			}
			if err == nil {
				decoded++
			}
			if prescan.Check([]byte(data)) != nil && err == nil {
				t.Errorf("%.8q... of %d bytes into %T was decoded, and Check refuses it", data, len(data), into)
			}
		}
	}
	if decoded < 10 {
		t.Errorf("%d were decoded: that shows little", decoded)
	}
}
