// Package onceotel records OpenTelemetry metrics of fetchonce.
//
//	trace, err := onceotel.Trace(onceotel.WithAttributes(attribute.String("loader", "things")))
//	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things", Trace: trace})
//
// The instruments and their attributes are below. Durations are in seconds.
//
//	fetchonce.gets                 counter    Gets, Loads and keys of a GetMany: kind, source, stale, outcome
//	fetchonce.get.duration         histogram  Gets other than hits: kind, outcome
//	fetchonce.fetch.duration       histogram  fetches: background, unleased, outcome
//	fetchonce.fetch.keys           counter    fetched keys: background
//	fetchonce.wait.duration        histogram  waits for another process: answered
//	fetchonce.fill.size            histogram  bytes of fetched values written to Redis: outcome
//	fetchonce.lease.lost           counter    leases lost during a fetch
//	fetchonce.redis.errors         counter    failed Redis operations: operation
//	fetchonce.near.dropped         counter    near entries dropped before their TTL: reset
//	fetchonce.near.resets          counter    drops of all near entries
//	fetchonce.lock.wait.duration   histogram  lock requests: local_handoff, try, outcome
//	fetchonce.lock.hold.duration   histogram  lock holds: outcome
//
// Attributes are named fetchonce.kind, fetchonce.source and so on, after the fields of
// the [fetchonce.Trace] events. fetchonce.outcome is ok, not_found, superseded or error.
// With an error, error.type is fetch_timeout, lock_lost, locked, closed, canceled,
// timeout, panic, fetchonce (any other [*fetchonce.Error]) or _OTHER. No attribute
// contains a key, a lock name or the text of an error.
//
// The number of saved fetches is fetchonce.gets of the kinds miss and joined, minus
// fetchonce.fetch.keys with background=false; see [fetchonce.Trace].
//
// The package creates no spans. The context of a fetch has the values of one caller's
// context, so a span that the fetch starts is a child of that caller's span.
package onceotel

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/fetchonce/fetchonce"
)

// scope is the name of the meter.
const scope = "github.com/fetchonce/fetchonce/onceotel"

// An Option configures [Trace].
type Option func(*config)

type config struct {
	provider   metric.MeterProvider
	attributes []attribute.KeyValue
}

// WithMeterProvider sets the provider of the meter. Defaults to the global provider,
// [otel.GetMeterProvider].
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(c *config) { c.provider = p }
}

// WithAttributes adds attributes to all measurements, such as the name of the Loader or
// Locker. To distinguish several of them, give each a Trace of its own.
func WithAttributes(attributes ...attribute.KeyValue) Option {
	return func(c *config) { c.attributes = append(c.attributes, attributes...) }
}

// Trace returns a Trace for [fetchonce.Options] or [fetchonce.LockOptions]. Several Loaders
// and Lockers may share it. The error is that of the meter if it cannot create an
// instrument, or says that the provider is nil.
func Trace(opts ...Option) (*fetchonce.Trace, error) {
	c := config{provider: otel.GetMeterProvider()}
	for _, option := range opts {
		option(&c)
	}
	if c.provider == nil {
		return nil, errors.New("onceotel: the meter provider is nil")
	}
	m := &maker{meter: c.provider.Meter(scope), attributes: c.attributes}
	t := &fetchonce.Trace{
		Got:         m.got(),
		Fetched:     m.fetched(),
		Waited:      m.waited(),
		Stored:      m.stored(),
		LeaseLost:   m.leaseLost(),
		RedisFailed: m.redisFailed(),
		NearDropped: m.nearDropped(),
		Locked:      m.locked(),
		Unlocked:    m.unlocked(),
	}
	if err := errors.Join(m.errs...); err != nil {
		return nil, err
	}
	return t, nil
}

// The names of attributes.
const (
	kind         = attribute.Key("fetchonce.kind")
	source       = attribute.Key("fetchonce.source")
	stale        = attribute.Key("fetchonce.stale")
	outcome      = attribute.Key("fetchonce.outcome")
	errorType    = attribute.Key("error.type")
	background   = attribute.Key("fetchonce.background")
	unleased     = attribute.Key("fetchonce.unleased")
	answered     = attribute.Key("fetchonce.answered")
	operation    = attribute.Key("fetchonce.operation")
	reset        = attribute.Key("fetchonce.reset")
	localHandoff = attribute.Key("fetchonce.local_handoff")
	try          = attribute.Key("fetchonce.try")
)

func (m *maker) got() func(context.Context, fetchonce.TraceGet) {
	gets := m.counter("fetchonce.gets", "{get}", "Gets, Loads and keys of a GetMany.")
	took := m.histogram("fetchonce.get.duration", "s", "Duration of Gets other than hits.", seconds)

	// Hits are frequent, so their attributes are made once.
	hits := make(map[hit][]metric.AddOption)
	for _, s := range []fetchonce.Source{fetchonce.SourceNear, fetchonce.SourceRedis, fetchonce.SourceStore} {
		for _, old := range []bool{false, true} {
			for _, err := range []error{nil, fetchonce.ErrNotFound} {
				hits[hit{s, old, err != nil}] = []metric.AddOption{m.of(attributesOf(fetchonce.TraceGet{
					Kind: fetchonce.GetHit, Source: s, Stale: old, Err: err,
				})...)}
			}
		}
	}
	return func(ctx context.Context, g fetchonce.TraceGet) {
		if g.Kind == fetchonce.GetHit {
			if attributes, ok := hits[hit{g.Source, g.Stale, g.Err != nil}]; ok {
				gets.Add(ctx, 1, attributes...)
				return
			}
		}
		gets.Add(ctx, 1, m.of(attributesOf(g)...))
		if g.Kind != fetchonce.GetHit {
			took.Record(ctx, g.Took.Seconds(), m.of(with(g.Err, kind.String(g.Kind.String()))...))
		}
	}
}

// A hit is a kind of hit.
type hit struct {
	source        fetchonce.Source
	stale, absent bool
}

func attributesOf(g fetchonce.TraceGet) []attribute.KeyValue {
	return with(g.Err, kind.String(g.Kind.String()), source.String(g.Source.String()), stale.Bool(g.Stale))
}

func (m *maker) fetched() func(context.Context, fetchonce.TraceFetch) {
	took := m.histogram("fetchonce.fetch.duration", "s", "Duration of fetches.", seconds)
	keys := m.counter("fetchonce.fetch.keys", "{key}", "Fetched keys.")
	return func(ctx context.Context, f fetchonce.TraceFetch) {
		took.Record(ctx, f.Took.Seconds(), m.of(with(f.Err, background.Bool(f.Background), unleased.Bool(f.Unleased))...))
		keys.Add(ctx, int64(f.Keys), m.of(background.Bool(f.Background)))
	}
}

func (m *maker) waited() func(context.Context, fetchonce.TraceWait) {
	took := m.histogram("fetchonce.wait.duration", "s", "Duration of waits for another process.", seconds)
	return func(ctx context.Context, w fetchonce.TraceWait) {
		took.Record(ctx, w.Took.Seconds(), m.of(answered.Bool(w.Answered)))
	}
}

func (m *maker) stored() func(context.Context, fetchonce.TraceStore) {
	size := m.histogram("fetchonce.fill.size", "By", "Encoded size of fetched values written to Redis.", bytes)
	return func(ctx context.Context, s fetchonce.TraceStore) {
		attributes := with(s.Err)
		if s.Superseded {
			attributes = []attribute.KeyValue{outcome.String("superseded")}
		}
		size.Record(ctx, float64(s.Bytes), m.of(attributes...))
	}
}

func (m *maker) leaseLost() func(context.Context, fetchonce.TraceLease) {
	lost := m.counter("fetchonce.lease.lost", "{lease}", "Leases lost during a fetch.")
	none := []metric.AddOption{m.of()}
	return func(ctx context.Context, _ fetchonce.TraceLease) { lost.Add(ctx, 1, none...) }
}

func (m *maker) redisFailed() func(context.Context, fetchonce.TraceRedisError) {
	failed := m.counter("fetchonce.redis.errors", "{operation}", "Failed Redis operations.")
	return func(ctx context.Context, e fetchonce.TraceRedisError) {
		failed.Add(ctx, 1, m.of(operation.String(e.Op)))
	}
}

func (m *maker) nearDropped() func(context.Context, fetchonce.TraceNearDrop) {
	dropped := m.counter("fetchonce.near.dropped", "{entry}", "Near entries dropped before their TTL.")
	resets := m.counter("fetchonce.near.resets", "{reset}", "Drops of all near entries.")
	one, all := []metric.AddOption{m.of(reset.Bool(false))}, []metric.AddOption{m.of(reset.Bool(true))}
	every := []metric.AddOption{m.of()}
	return func(ctx context.Context, d fetchonce.TraceNearDrop) {
		if !d.Reset {
			dropped.Add(ctx, int64(d.Copies), one...)
			return
		}
		dropped.Add(ctx, int64(d.Copies), all...)
		resets.Add(ctx, 1, every...)
	}
}

func (m *maker) locked() func(context.Context, fetchonce.TraceLock) {
	waited := m.histogram("fetchonce.lock.wait.duration", "s", "Duration of lock requests.", seconds)
	return func(ctx context.Context, l fetchonce.TraceLock) {
		waited.Record(ctx, l.Waited.Seconds(), m.of(with(l.Err, localHandoff.Bool(l.LocalHandoff), try.Bool(l.Try))...))
	}
}

func (m *maker) unlocked() func(context.Context, fetchonce.TraceUnlock) {
	held := m.histogram("fetchonce.lock.hold.duration", "s", "Duration of lock holds.", seconds)
	return func(ctx context.Context, u fetchonce.TraceUnlock) {
		held.Record(ctx, u.Held.Seconds(), m.of(with(u.Err)...))
	}
}

// with adds the outcome and, for an error, its type.
func with(err error, attributes ...attribute.KeyValue) []attribute.KeyValue {
	switch {
	case err == nil:
		return append(attributes, outcome.String("ok"))
	case errors.Is(err, fetchonce.ErrNotFound):
		return append(attributes, outcome.String("not_found"))
	}
	return append(attributes, outcome.String("error"), errorType.String(typeOf(err)))
}

// typeOf returns the error.type of an error.
func typeOf(err error) string {
	if _, ok := errors.AsType[*fetchonce.PanicError](err); ok {
		return "panic"
	}
	for _, known := range []struct {
		err  error
		name string
	}{
		{fetchonce.ErrFetchTimeout, "fetch_timeout"},
		{fetchonce.ErrLockLost, "lock_lost"},
		{fetchonce.ErrLocked, "locked"},
		{fetchonce.ErrClosed, "closed"},
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "timeout"},
	} {
		if errors.Is(err, known.err) {
			return known.name
		}
	}
	if _, ok := errors.AsType[*fetchonce.Error](err); ok {
		return "fetchonce"
	}
	return "_OTHER" // as the semantic conventions have it
}

// A maker makes instruments.
type maker struct {
	meter      metric.Meter
	attributes []attribute.KeyValue
	errs       []error
}

// The bounds of histograms. Those of seconds are the bounds that OpenTelemetry recommends for
// HTTP, with some below and above.
var (
	seconds = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60}
	bytes   = []float64{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20}
)

func (m *maker) counter(name, unit, what string) metric.Int64Counter {
	c, err := m.meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(what))
	m.errs = append(m.errs, err)
	return c
}

func (m *maker) histogram(name, unit, what string, bounds []float64) metric.Float64Histogram {
	h, err := m.meter.Float64Histogram(name, metric.WithUnit(unit), metric.WithDescription(what), metric.WithExplicitBucketBoundaries(bounds...))
	m.errs = append(m.errs, err)
	return h
}

// of returns the attributes of a measurement, together with those of the user.
func (m *maker) of(attributes ...attribute.KeyValue) metric.MeasurementOption {
	all := make([]attribute.KeyValue, 0, len(m.attributes)+len(attributes))
	return metric.WithAttributeSet(attribute.NewSet(append(append(all, m.attributes...), attributes...)...))
}
