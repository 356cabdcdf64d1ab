// Package onceotel makes metrics of OpenTelemetry of what fetchonce does.
//
//	trace, err := onceotel.Trace(onceotel.WithAttributes(attribute.String("loader", "things")))
//	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things", Trace: trace})
//
// These are its instruments. All durations are in seconds.
//
//	fetchonce.gets                 counter    Gets, Loads and keys of a GetMany: kind, source, stale, outcome
//	fetchonce.get.duration         histogram  how long those took that were no hits: kind, outcome
//	fetchonce.fetch.duration       histogram  fetches: behind, blind, outcome
//	fetchonce.fetch.keys           counter    keys that were fetched: behind
//	fetchonce.wait.duration        histogram  waits for another process: served
//	fetchonce.store.size           histogram  bytes that were stored in Redis, or not: outcome
//	fetchonce.lease.lost           counter    leases lost during a fetch
//	fetchonce.redis.errors         counter    operations in Redis that failed: operation
//	fetchonce.near.dropped         counter    near copies dropped before their time: reset
//	fetchonce.near.resets          counter    times that all near copies were dropped
//	fetchonce.lock.wait.duration   histogram  locks asked for: handed_on, try, outcome
//	fetchonce.lock.hold.duration   histogram  locks held: outcome
//
// The attributes are named fetchonce.kind, fetchonce.source and so on, as the
// fields of the structs that a [fetchonce.Trace] is told. fetchonce.outcome is ok,
// not_found, refused or error; with an error, error.type says which: fetch_timeout,
// lock_lost, locked, closed, canceled, timeout, panic, fetchonce for an
// [*fetchonce.Error] of another cause, or _OTHER. Every attribute has a few values:
// no key, no name of a lock, and no text of an error is among them.
//
// Fetches saved, as [fetchonce.Trace] defines them, are the sum of fetchonce.gets
// of the kinds miss and joined, less the sum of fetchonce.fetch.keys that are not
// behind.
//
// There are no spans. The context that a fetch is given has the values of one of
// its callers', so a span that the fetch itself starts is a child of that caller's.
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

// An Option changes what [Trace] makes.
type Option func(*config)

type config struct {
	provider   metric.MeterProvider
	attributes []attribute.KeyValue
}

// WithMeterProvider has the meter come from p. The default is the global provider,
// [otel.GetMeterProvider].
func WithMeterProvider(p metric.MeterProvider) Option {
	return func(c *config) { c.provider = p }
}

// WithAttributes adds attributes to all that is measured, such as the name of the
// Loader or Locker for which the Trace is. Give each a Trace of its own to tell
// them apart.
func WithAttributes(attributes ...attribute.KeyValue) Option {
	return func(c *config) { c.attributes = append(c.attributes, attributes...) }
}

// Trace returns a Trace for [fetchonce.Options] or [fetchonce.LockOptions], which
// may be used for several. The error is one of the meter's, which will not have an
// instrument.
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
	kind      = attribute.Key("fetchonce.kind")
	source    = attribute.Key("fetchonce.source")
	stale     = attribute.Key("fetchonce.stale")
	outcome   = attribute.Key("fetchonce.outcome")
	errorType = attribute.Key("error.type")
	behind    = attribute.Key("fetchonce.behind")
	blind     = attribute.Key("fetchonce.blind")
	served    = attribute.Key("fetchonce.served")
	operation = attribute.Key("fetchonce.operation")
	reset     = attribute.Key("fetchonce.reset")
	handedOn  = attribute.Key("fetchonce.handed_on")
	try       = attribute.Key("fetchonce.try")
)

func (m *maker) got() func(context.Context, fetchonce.TraceGet) {
	gets := m.counter("fetchonce.gets", "{get}", "Gets, Loads and keys of a GetMany.")
	took := m.histogram("fetchonce.get.duration", "s", "How long Gets took that were no hits.", seconds)

	// Hits are frequent: what is said of them is made before.
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
			if said, ok := hits[hit{g.Source, g.Stale, g.Err != nil}]; ok {
				gets.Add(ctx, 1, said...)
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
	took := m.histogram("fetchonce.fetch.duration", "s", "How long fetches took.", seconds)
	keys := m.counter("fetchonce.fetch.keys", "{key}", "Keys that were fetched.")
	return func(ctx context.Context, f fetchonce.TraceFetch) {
		took.Record(ctx, f.Took.Seconds(), m.of(with(f.Err, behind.Bool(f.Behind), blind.Bool(f.Blind))...))
		keys.Add(ctx, int64(f.Keys), m.of(behind.Bool(f.Behind)))
	}
}

func (m *maker) waited() func(context.Context, fetchonce.TraceWait) {
	took := m.histogram("fetchonce.wait.duration", "s", "How long another process was waited for.", seconds)
	return func(ctx context.Context, w fetchonce.TraceWait) {
		took.Record(ctx, w.Took.Seconds(), m.of(served.Bool(w.Served)))
	}
}

func (m *maker) stored() func(context.Context, fetchonce.TraceStore) {
	size := m.histogram("fetchonce.store.size", "By", "Encoded size of what was fetched and came to be stored in Redis.", bytes)
	return func(ctx context.Context, s fetchonce.TraceStore) {
		said := with(s.Err)
		if s.Refused {
			said = []attribute.KeyValue{outcome.String("refused")}
		}
		size.Record(ctx, float64(s.Bytes), m.of(said...))
	}
}

func (m *maker) leaseLost() func(context.Context, fetchonce.TraceLease) {
	lost := m.counter("fetchonce.lease.lost", "{lease}", "Leases that were lost while a fetch ran.")
	said := []metric.AddOption{m.of()}
	return func(ctx context.Context, _ fetchonce.TraceLease) { lost.Add(ctx, 1, said...) }
}

func (m *maker) redisFailed() func(context.Context, fetchonce.TraceRedisError) {
	failed := m.counter("fetchonce.redis.errors", "{operation}", "Operations in Redis that failed.")
	return func(ctx context.Context, e fetchonce.TraceRedisError) {
		failed.Add(ctx, 1, m.of(operation.String(e.Op)))
	}
}

func (m *maker) nearDropped() func(context.Context, fetchonce.TraceNearDrop) {
	dropped := m.counter("fetchonce.near.dropped", "{copy}", "Near copies that were dropped before their time.")
	resets := m.counter("fetchonce.near.resets", "{reset}", "Times that all near copies were dropped.")
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
	waited := m.histogram("fetchonce.lock.wait.duration", "s", "How long locks were waited for.", seconds)
	return func(ctx context.Context, l fetchonce.TraceLock) {
		waited.Record(ctx, l.Waited.Seconds(), m.of(with(l.Err, handedOn.Bool(l.HandedOn), try.Bool(l.Try))...))
	}
}

func (m *maker) unlocked() func(context.Context, fetchonce.TraceUnlock) {
	held := m.histogram("fetchonce.lock.hold.duration", "s", "How long locks were held.", seconds)
	return func(ctx context.Context, u fetchonce.TraceUnlock) {
		held.Record(ctx, u.Held.Seconds(), m.of(with(u.Err)...))
	}
}

// with adds to attributes what came of it.
func with(err error, attributes ...attribute.KeyValue) []attribute.KeyValue {
	switch {
	case err == nil:
		return append(attributes, outcome.String("ok"))
	case errors.Is(err, fetchonce.ErrNotFound):
		return append(attributes, outcome.String("not_found"))
	}
	return append(attributes, outcome.String("error"), errorType.String(typeOf(err)))
}

// typeOf says what an error is, in one of a few words.
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

// The bounds of histograms: those that OpenTelemetry advises for HTTP, and some
// below and above.
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

// of returns the attributes of a measurement, with those of the user.
func (m *maker) of(attributes ...attribute.KeyValue) metric.MeasurementOption {
	all := make([]attribute.KeyValue, 0, len(m.attributes)+len(attributes))
	return metric.WithAttributeSet(attribute.NewSet(append(append(all, m.attributes...), attributes...)...))
}
