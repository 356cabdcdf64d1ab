package ratelog_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce/internal/guard"
	"github.com/fetchonce/fetchonce/internal/ratelog"
)

func newLog() (*ratelog.Log, *bytes.Buffer) {
	var out bytes.Buffer
	return ratelog.New(slog.New(slog.NewTextHandler(&out, nil))), &out
}

func TestMessageIsLoggedOnceInTenSecondsWithItsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, out := newLog()
		for range 5 {
			log.Warn("down", errors.New("refused"))
		}
		log.Warn("other", errors.New("refused"))
		if n := strings.Count(out.String(), "msg="); n != 2 {
			t.Errorf("%d lines, want one of each message:\n%s", n, out)
		}
		out.Reset()
		time.Sleep(10 * time.Second)
		log.Warn("down", errors.New("refused"))
		if !strings.Contains(out.String(), "count=5") {
			t.Errorf("%q, want the 5 events since the last line", out)
		}
	})
}

func TestOnceIsLoggedTheFirstTimeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, out := newLog()
		for range 3 {
			log.Once("no PUBLISH", errors.New("NOPERM"))
			time.Sleep(time.Hour)
		}
		if n := strings.Count(out.String(), "msg="); n != 1 {
			t.Errorf("%d lines, want 1", n)
		}
	})
}

func TestPanicOfAHookIsLoggedWithoutItsText(t *testing.T) {
	log, out := newLog()
	log.Warn("failed", &guard.PanicError{Value: "SET secret"})
	if out.Len() == 0 || strings.Contains(out.String(), "secret") {
		t.Errorf("logged %q", out)
	}
}

type panicking struct{ slog.Handler }

func TestPanicOfTheLoggerIsDropped(t *testing.T) {
	ratelog.New(slog.New(panicking{})).Warn("failed", errors.New("refused"))
}

func TestEndIsLoggedOnceAndOnlyIfTheFaultWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, out := newLog()
		log.Over("back", "down")
		if out.Len() > 0 {
			t.Errorf("logged %q without a fault", out)
		}
		log.Warn("down", errors.New("refused"))
		log.Over("back", "down")
		log.Over("back", "down")
		if n := strings.Count(out.String(), "back"); n != 1 {
			t.Errorf("%d lines, want 1:\n%s", n, out)
		}
	})
}

func TestEachLineHasTheAttributes(t *testing.T) {
	var out bytes.Buffer
	log := ratelog.New(slog.New(slog.NewTextHandler(&out, nil)), "prefix", "things")
	log.Warn("down", errors.New("refused"))
	log.Over("back", "down")
	log.Info("taken over")
	log.Note("note", "a", 1)
	if n := strings.Count(out.String(), "prefix=things"); n != 4 {
		t.Errorf("%d lines have the attribute, want 4:\n%s", n, &out)
	}
}
