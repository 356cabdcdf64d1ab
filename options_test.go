package fetchonce_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/envelope"
)

func TestNewNamesTheOptionItCannotUse(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // receives no command
	defer rdb.Close()
	for field, opt := range map[string]options{
		"Prefix":                      {},
		"TTL":                         {Prefix: "p", TTL: time.Microsecond},
		"Store":                       {Prefix: "p", TTL: fetchonce.Off},
		"NotFoundTTL":                 {Prefix: "p", NotFoundTTL: 1},
		"Lease is 1m1s, more than 1m": {Prefix: "p", Lease: time.Minute + time.Second},
		"ErrorTTL":                    {Prefix: "p", ErrorTTL: 101 * 365 * 24 * time.Hour},
		"Lease":                       {Prefix: "p", Lease: fetchonce.Off},
		"FetchTimeout":                {Prefix: "p", FetchTimeout: time.Nanosecond},
		"RedisTimeout":                {Prefix: "p", RedisTimeout: fetchonce.Off},
		"Jitter":                      {Prefix: "p", Jitter: math.NaN()},
		"MaxBytes":                    {Prefix: "p", MaxBytes: 1 << 30},
		"OnRedisDown":                 {Prefix: "p", OnRedisDown: 7},
		"Near":                        {Prefix: "p", TTL: fetchonce.Off, Store: &table{}, Near: fetchonce.Near{Entries: 1}},
		"Near.Entries":                {Prefix: "p", Near: fetchonce.Near{Entries: -1}},
		"Near.TTL":                    {Prefix: "p", Near: fetchonce.Near{Entries: 1, TTL: time.Microsecond}},
		"Errors[1] is nil":            {Prefix: "p", Errors: []error{errGone, nil}},
		`Errors[1] has the text of another: "gone"`: {Prefix: "p", Errors: []error{errGone, errors.New("gone")}},
		`Errors[0] is "fetchonce: not found"`:       {Prefix: "p", Errors: []error{fetchonce.ErrNotFound}},
		`Errors[0] is "fetchonce: closed"`:          {Prefix: "p", Errors: []error{fmt.Errorf("own: %w", fetchonce.ErrClosed)}},
		"Errors has 101 errors, more than 100":      {Prefix: "p", Errors: make([]error, 101)},
	} {
		_, err := fetchonce.New(rdb, opt)
		if e, ok := errors.AsType[*fetchonce.Error](err); !ok || e.Op != "new" || !strings.Contains(e.Error(), "Options."+field) {
			t.Errorf("New without a usable %s: %v", field, err)
		}
	}
}

// FuzzDurations checks that options with any durations are refused, or give TTLs that Redis can
// keep: a millisecond at least, and no overflow. The fuzz test of internal/protocol covers the rest.
func FuzzDurations(f *testing.F) {
	const ms, year = int64(time.Millisecond), int64(365 * 24 * time.Hour)
	f.Add(int64(0), int64(0), int64(0), int64(0), int64(0), 0.0)
	f.Add(ms, ms, ms, ms, ms, 0.999)
	f.Add(ms+1, ms-1, int64(0), int64(0), ms+1, 0.5)
	f.Add(100*year, 100*year, 100*year, 100*year, 100*year, -1.0)
	f.Add(9*ms, int64(0), int64(0), int64(0), int64(-1), math.NaN())
	f.Add(int64(math.MaxInt64), int64(math.MinInt64), int64(1), int64(-1), int64(math.MaxInt64), math.Inf(-1))
	f.Fuzz(func(t *testing.T, ttl, notFound, whileRevalidate, ifError, own int64, jitter float64) {
		opt := options{
			Prefix: "p", TTL: time.Duration(ttl), NotFoundTTL: time.Duration(notFound), Jitter: jitter, Store: &table{},
			StaleWhileRevalidate: time.Duration(whileRevalidate), StaleIfError: time.Duration(ifError),
		}
		rules, err := fetchonce.RulesOf(opt)
		if err != nil {
			return
		}
		for _, kind := range []envelope.Kind{envelope.Value, envelope.NotFound} {
			fresh, kept := rules.Lifetime(kind, time.Duration(own))
			if kept < fresh || fresh == 0 && kept != 0 || fresh != 0 && fresh < time.Millisecond || kept > 200*time.Duration(year) {
				t.Errorf("%+v and a fetch's %v: fresh for %v, kept for %v", opt, time.Duration(own), fresh, kept)
			}
			off := opt.TTL < 0 || own < 0 || own > 0 && own < ms || own > 100*year
			if kind == envelope.Value && (fresh == 0) != off {
				t.Errorf("%+v and a fetch's %v: fresh for %v", opt, time.Duration(own), fresh)
			}
		}
	})
}
