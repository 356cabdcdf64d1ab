package oncetest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncetest"
)

// With the retries of go-redis or those of docs/production.md, an outage costs the first Get
// RedisTimeout at most and later Gets nothing. Redis is used again within two seconds.
func TestOutageWithTheClientsOwnRetries(t *testing.T) {
	faults := map[string]func(testing.TB, ...redis.UniversalClient){"Down": oncetest.Down, "Hang": oncetest.Hang}
	settings := map[string]*redis.Options{
		"go-redis": {PoolSize: 20},
		"recommended": {
			PoolSize: 20, DialTimeout: time.Second, ReadTimeout: time.Second, DialerRetries: 1, MaxRetries: 1, ContextTimeoutEnabled: true,
		},
	}
	for fault, begin := range faults {
		for name, opt := range settings {
			t.Run(fault+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					rdb := oncetest.NewClientWith(t, oncetest.Redis(t), opt)
					w := newWeather(t, rdb, &forecastAPI{})
					w.load(t)
					begin(t, rdb)
					defer oncetest.Up(t, rdb)
					if took, _ := w.load(t); took > 500*time.Millisecond {
						t.Errorf("the first Load took %v, want RedisTimeout at most", took)
					}
					for range 600 {
						time.Sleep(100 * time.Millisecond)
						if took, _ := w.load(t); took > 0 {
							t.Fatalf("a Load after the first failure took %v", took)
						}
					}
					oncetest.Up(t, rdb)
					time.Sleep(2 * time.Second)
					if _, source := w.load(t); source != fetchonce.SourceRedis {
						t.Errorf("two seconds after Redis is back, the source is %v", source)
					}
				})
			})
		}
	}
}

// load runs a Load whose fetch takes no time. It returns how long the Load took and the source.
func (w *weather) load(t *testing.T) (time.Duration, fetchonce.Source) {
	t.Helper()
	began := time.Now()
	fetch := func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "sun", nil }
	got, err := w.forecasts.Load(t.Context(), "Oslo", fetch)
	if err != nil {
		t.Error(err)
	}
	return time.Since(began), got.Source
}
