//go:build linux

package fetchonce_test

import (
	"testing"

	"github.com/fetchonce/fetchonce/internal/redistest"
)

// One after another, of 4 processes with 8 goroutines each, and everybody as
// often as everybody else. BenchmarkHandOver does it 10^5 times.
func TestOneAtATime(t *testing.T) {
	srv := redistest.Server(t)
	total := 10_000
	if testing.Short() {
		total = 2_000
	}
	c := startLockCrew(t, 4, lockJob{URL: srv.URL(), Goroutines: 8, Total: total})
	h := c.measure()
	t.Log(h)
	if h.fairness < 0.9 {
		t.Errorf("the least favoured goroutine had %.2f of the turns of the most favoured", h.fairness)
	}
	if h.p99 > 10*h.mean {
		t.Errorf("p99 of the waits is %v, the mean %v", h.p99, h.mean)
	}
}

// The measure: 10^5 acquisitions by 4 processes x 8 goroutines.
func BenchmarkHandOver(b *testing.B) {
	srv := redistest.Server(b)
	for b.Loop() {
		c := startLockCrew(b, 4, lockJob{URL: srv.URL(), Goroutines: 8, Total: 100_000})
		h := c.measure()
		b.Log(h)
		b.ReportMetric(h.perSecond, "handovers/s")
		b.ReportMetric(h.fairness, "min/max")
		b.ReportMetric(float64(h.p50.Microseconds()), "p50-µs")
		b.ReportMetric(float64(h.p99.Microseconds()), "p99-µs")
	}
}
