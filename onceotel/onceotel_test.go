package onceotel_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/onceotel"
)

// secret is in every key, and must be in no metric.
const secret = "s3cret"

// newTrace returns a Trace, and a function that returns what was measured so far:
// for each instrument and set of attributes, the count or sum.
func newTrace(t *testing.T, opts ...onceotel.Option) (*fetchonce.Trace, func() map[string]int64) {
	t.Helper()
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	trace, err := onceotel.Trace(append(opts, onceotel.WithMeterProvider(provider))...)
	if err != nil {
		t.Fatal(err)
	}
	return trace, func() map[string]int64 {
		t.Helper()
		var got metricdata.ResourceMetrics
		if err := reader.Collect(context.WithoutCancel(t.Context()), &got); err != nil {
			t.Fatal(err)
		}
		return measured(t, got)
	}
}

func measured(t *testing.T, got metricdata.ResourceMetrics) map[string]int64 {
	t.Helper()
	all := make(map[string]int64)
	for _, scope := range got.ScopeMetrics {
		if scope.Scope.Name != "github.com/fetchonce/fetchonce/onceotel" {
			t.Errorf("a metric of %q", scope.Scope.Name)
		}
		for _, m := range scope.Metrics {
			note := func(set attribute.Set, n int64) {
				text := set.Encoded(attribute.DefaultEncoder())
				if strings.Contains(text, secret) {
					t.Errorf("%s has a key among its attributes: %s", m.Name, text)
				}
				all[m.Name+"{"+strings.ReplaceAll(text, "fetchonce.", "")+"}"] += n
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					note(p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					note(p.Attributes, int64(p.Count))
				}
			default:
				t.Errorf("%s is a %T", m.Name, data)
			}
			if m.Unit == "" || m.Description == "" {
				t.Errorf("%s has the unit %q and the description %q", m.Name, m.Unit, m.Description)
			}
		}
	}
	return all
}

func wantMeasured(t *testing.T, got, want map[string]int64) {
	t.Helper()
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s is %d, want %d", name, got[name], n)
		}
	}
	for name, n := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is %d, and was not expected", name, n)
		}
	}
}

func newLoader(t *testing.T, rdb *redis.Client, trace *fetchonce.Trace, change ...func(*fetchonce.Options[string])) *fetchonce.Loader[string] {
	t.Helper()
	opt := fetchonce.Options[string]{Prefix: "test", Trace: trace, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opt)
	}
	l, err := fetchonce.New(rdb, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Ten callers, one fetch of a second; then a hit, something that is not there, and
// a failure.
func TestLoader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace, read := newTrace(t, onceotel.WithAttributes(attribute.String("loader", "things")))
		l := newLoader(t, redistest.Bubble(t).Client(), trace)
		fetch := func(context.Context, string) (string, error) {
			time.Sleep(time.Second)
			return "v", nil
		}
		ask := func() {
			if v, err := l.Get(t.Context(), secret, fetch); v != "v" || err != nil {
				t.Errorf("Get = %q, %v", v, err)
			}
		}
		var all sync.WaitGroup
		for range 10 {
			all.Go(ask)
		}
		all.Wait()
		synctest.Wait()
		ask()
		for range 2 {
			_, _ = l.Get(t.Context(), secret+"none", func(context.Context, string) (string, error) { return "", fetchonce.ErrNotFound })
		}
		_, _ = l.Get(t.Context(), secret+"bad", func(context.Context, string) (string, error) { return "", errors.New(secret) })

		wantMeasured(t, read(), map[string]int64{
			"fetchonce.gets{kind=miss,outcome=ok,source=fetch,stale=false,loader=things}":                             1,
			"fetchonce.gets{kind=joined,outcome=ok,source=fetch,stale=false,loader=things}":                           9,
			"fetchonce.gets{kind=hit,outcome=ok,source=redis,stale=false,loader=things}":                              1,
			"fetchonce.gets{kind=miss,outcome=not_found,source=fetch,stale=false,loader=things}":                      1,
			"fetchonce.gets{kind=hit,outcome=not_found,source=redis,stale=false,loader=things}":                       1,
			"fetchonce.gets{error.type=_OTHER,kind=miss,outcome=error,source=none,stale=false,loader=things}":         1,
			"fetchonce.get.duration{kind=miss,outcome=ok,loader=things}":                                              1,
			"fetchonce.get.duration{kind=joined,outcome=ok,loader=things}":                                            9,
			"fetchonce.get.duration{kind=miss,outcome=not_found,loader=things}":                                       1,
			"fetchonce.get.duration{error.type=_OTHER,kind=miss,outcome=error,loader=things}":                         1,
			"fetchonce.fetch.duration{background=false,outcome=ok,unleased=false,loader=things}":                      1,
			"fetchonce.fetch.duration{background=false,outcome=not_found,unleased=false,loader=things}":               1,
			"fetchonce.fetch.duration{error.type=_OTHER,background=false,outcome=error,unleased=false,loader=things}": 1,
			"fetchonce.fetch.keys{background=false,loader=things}":                                                    3,
			"fetchonce.fill.size{outcome=ok,loader=things}":                                                           2,
		})
	})
}

// A near entry is used and dropped; a fetch is too late; Redis goes down.
func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := redistest.Bubble(t)
		trace, read := newTrace(t)
		l := newLoader(t, r.Client(), trace, func(opt *fetchonce.Options[string]) { opt.Near.Entries = 10 })
		var last fetchonce.Source
		for last != fetchonce.SourceNear { // it connects first
			got, err := l.Load(t.Context(), secret, func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "v", nil })
			if err != nil {
				t.Fatal(err)
			}
			last = got.Source
			time.Sleep(10 * time.Millisecond)
		}
		if err := l.Delete(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		_, _ = l.Get(t.Context(), secret, func(context.Context, string) (string, error) {
			_ = l.Delete(t.Context(), secret)
			return "old", nil
		})
		r.Kill()
		_, _ = l.Get(t.Context(), secret, func(context.Context, string) (string, error) { return "unleased", nil })

		got := read()
		for _, name := range []string{
			"fetchonce.gets{kind=hit,outcome=ok,source=near,stale=false}",
			"fetchonce.near.dropped{reset=false}",
			"fetchonce.fill.size{outcome=superseded}",
			"fetchonce.redis.errors{operation=read}",
			"fetchonce.fetch.duration{background=false,outcome=ok,unleased=true}",
		} {
			if got[name] != 1 {
				t.Errorf("%s is %d, want 1", name, got[name])
			}
		}
	})
}

func TestLocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace, read := newTrace(t)
		lk, err := fetchonce.NewLocker(redistest.Bubble(t).Client(), fetchonce.LockOptions{Prefix: "test", Trace: trace})
		if err != nil {
			t.Fatal(err)
		}
		defer lk.Close()
		err = lk.Do(t.Context(), secret, func(context.Context) error {
			if err := lk.TryDo(t.Context(), secret, func(context.Context) error { return nil }); !errors.Is(err, fetchonce.ErrLocked) {
				t.Errorf("TryDo = %v, want ErrLocked", err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		wantMeasured(t, read(), map[string]int64{
			"fetchonce.lock.wait.duration{local_handoff=false,outcome=ok,try=false}":                     1,
			"fetchonce.lock.wait.duration{error.type=locked,local_handoff=false,outcome=error,try=true}": 1,
			"fetchonce.lock.hold.duration{outcome=ok}":                                                   1,
		})
	})
}

// Every error has one of a few types.
func TestErrorTypes(t *testing.T) {
	trace, read := newTrace(t)
	for err, want := range map[error]string{
		&fetchonce.Error{Op: "fetch", Key: secret, Err: fetchonce.ErrFetchTimeout}: "fetch_timeout",
		&fetchonce.Error{Op: "read", Key: secret, Err: errors.New(secret)}:         "fetchonce",
		&fetchonce.PanicError{Value: secret}:                                       "panic",
		errors.Join(fetchonce.ErrLocked, context.Canceled):                         "locked",
		fetchonce.ErrLockLost:    "lock_lost",
		fetchonce.ErrClosed:      "closed",
		context.Canceled:         "canceled",
		context.DeadlineExceeded: "timeout",
		fmt.Errorf("%s: %w", secret, errors.ErrUnsupported): "_OTHER",
	} {
		trace.Unlocked(t.Context(), fetchonce.TraceUnlock{Err: err})
		name := "fetchonce.lock.hold.duration{error.type=" + want + ",outcome=error}"
		if got := read(); got[name] != 1 {
			t.Errorf("%v is not measured as %s: %v", err, want, got)
		}
	}
}

// Without a provider it is the global one.
func TestGlobalProvider(t *testing.T) {
	reader := sdk.NewManualReader()
	before := otel.GetMeterProvider()
	otel.SetMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader)))
	defer otel.SetMeterProvider(before)
	trace, err := onceotel.Trace()
	if err != nil {
		t.Fatal(err)
	}
	trace.LeaseLost(t.Context(), fetchonce.TraceLease{})
	var got metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	wantMeasured(t, measured(t, got), map[string]int64{"fetchonce.lease.lost{}": 1})
}

// broken is a provider whose meter has no counters.
type broken struct{ metric.MeterProvider }

type brokenMeter struct{ metric.Meter }

var errBroken = errors.New("broken")

func (b broken) Meter(name string, opts ...metric.MeterOption) metric.Meter {
	return brokenMeter{b.MeterProvider.Meter(name, opts...)}
}

func (brokenMeter) Int64Counter(string, ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	return nil, errBroken
}

func TestErrorOfTheMeter(t *testing.T) {
	if trace, err := onceotel.Trace(onceotel.WithMeterProvider(broken{noop.NewMeterProvider()})); trace != nil || !errors.Is(err, errBroken) {
		t.Errorf("Trace = %v, %v; want the meter's error", trace, err)
	}
	if trace, err := onceotel.Trace(onceotel.WithMeterProvider(nil)); trace != nil || err == nil {
		t.Errorf("Trace without a provider = %v, %v; want an error", trace, err)
	}
}

// The attributes of a hit are made once.
func TestHitDoesNotAllocate(t *testing.T) {
	trace, _ := newTrace(t, onceotel.WithAttributes(attribute.String("loader", "things")))
	ctx := context.Background() //nolint:usetesting // a test's own is no cheaper, but not the usual one
	n := testing.AllocsPerRun(1000, func() {
		trace.Got(ctx, fetchonce.TraceGet{Key: secret, Kind: fetchonce.GetHit, Source: fetchonce.SourceNear})
	})
	if n > 0 {
		t.Errorf("a hit makes %v allocations", n)
	}
}
