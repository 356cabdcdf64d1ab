package missrate_test

import (
	"testing"

	"github.com/fetchonce/fetchonce/internal/missrate"
)

// lookups counts n lookups, of which each period-th hits.
func lookups(r *missrate.Rate, n, period int) {
	for i := range n {
		if i%period == 0 {
			r.Hit()
		} else {
			r.Miss()
		}
	}
}

func TestPredictionFollowsTheMissRate(t *testing.T) {
	for period, want := range map[int]bool{5: false, 8: false, 20: true} {
		var r missrate.Rate
		lookups(&r, 1000*period, period)
		if r.Absent() != want {
			t.Errorf("one hit in %d: absent %v, want %v", period, !want, want)
		}
	}
}

func TestFewMissesPredictNothing(t *testing.T) {
	var r missrate.Rate
	for range 23 {
		r.Miss()
	}
	if r.Absent() {
		t.Error("23 misses predict that a key is absent")
	}
	if r.Miss(); !r.Absent() {
		t.Error("24 misses predict nothing")
	}
	if r.Reset(); r.Absent() {
		t.Error("a reset keeps the prediction")
	}
}
