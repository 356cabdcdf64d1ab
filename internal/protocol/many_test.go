package protocol_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

type saysError string

func (e saysError) Error() string { return string(e) }
func (saysError) RedisError()     {}

// refusing is a Runner that answers every command with an error, for some time.
type refusing struct {
	err   error
	until time.Time
	trips int // round trips
}

func (r *refusing) Read(ctx context.Context, within time.Duration, cmd *redis.StringCmd) error {
	return r.Do(ctx, within, cmd)
}

func (r *refusing) Do(_ context.Context, _ time.Duration, cmds ...redis.Cmder) (err error) {
	r.trips++
	for _, cmd := range cmds {
		if time.Now().Before(r.until) {
			cmd.SetErr(r.err)
		} else {
			cmd.(*redis.StringCmd).SetVal("v")
		}
		err = cmd.Err()
	}
	return err
}

func (*refusing) Failed(_ context.Context, _ string, _ time.Duration, err error) error { return err }

func (r *refusing) Each(ctx context.Context, within time.Duration, cmds []redis.Cmder) []error {
	errs := make([]error, len(cmds))
	_ = r.Do(ctx, within, cmds...)
	for i, cmd := range cmds {
		errs[i] = cmd.Err()
	}
	return errs
}

// The keys of a GetMany are sent again together, so that takes no longer than for one key.
func TestGetManyWaitsOnceForPassingErrors(t *testing.T) {
	for _, err := range []error{saysError("MASTERDOWN Link with MASTER is down"), saysError("MOVED 1 127.0.0.1:1")} {
		for _, lasts := range []time.Duration{100 * time.Millisecond, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				run := &refusing{err: err, until: time.Now().Add(lasts)}
				c := protocol.NewClient(run, ns, "p", timeout, false)
				keys := make([]protocol.Key, 60)
				for i := range keys {
					keys[i] = ns.Key(fmt.Sprint("k", i))
				}
				start := time.Now()
				for i, got := range c.GetMany(t.Context(), run, keys, 100) {
					if ended := lasts < timeout; (got.Err == nil) != ended || ended && string(got.Value) != "v" {
						t.Fatalf("%v for %v: key %d is %q, %v", err, lasts, i, got.Value, got.Err)
					}
				}
				if took := time.Since(start); took > min(3*lasts, timeout) { // a pause may be as long as the error lasts
					t.Errorf("%v for %v: took %v", err, lasts, took)
				}
				if most := int(2*timeout/(100*time.Millisecond)) + 10; run.trips > most {
					t.Errorf("%v for %v: %d round trips", err, lasts, run.trips)
				}
			})
		}
	}
}
