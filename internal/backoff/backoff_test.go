package backoff_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/backoff"
)

func TestBackoffGrowsWithTheAgeOfTheStaleValue(t *testing.T) {
	for stale, middle := range map[time.Duration]time.Duration{
		0:                time.Second,
		4 * time.Second:  time.Second,
		40 * time.Second: 10 * time.Second,
		time.Hour:        30 * time.Second,
	} {
		for range 1000 {
			if d := backoff.After(stale); d < middle*3/4 || d > middle*5/4 || d > backoff.Longest {
				t.Fatalf("After(%v) = %v, want %v with a quarter of jitter", stale, d, middle)
			}
		}
	}
}

func TestBackoffEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keys backoff.Keys
		keys.Set("k", time.Second)
		if !keys.Active("k") || keys.Active("other") {
			t.Error("want a backoff of k alone")
		}
		time.Sleep(time.Second)
		if keys.Active("k") {
			t.Error("the backoff did not end")
		}
	})
}

func TestKeysAreBounded(t *testing.T) {
	var keys backoff.Keys
	for i := range 10_001 {
		keys.Set(strconv.Itoa(i), time.Hour)
	}
	if keys.Active("0") || !keys.Active("10000") {
		t.Error("want the last key only, after more than 10,000")
	}
}
