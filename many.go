package fetchonce

import (
	"context"
	"errors"
	"sync"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/fetchonce/fetchonce/internal/batchfetch"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/lookupmany"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/permit"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// GetMany is like [Loader.Get] for many keys at once. It reads stored values in one round trip for
// each Redis node and each thousand keys. It reads at most 32 MiB from a node at once, so large
// values take further round trips. The missing keys are fetched in one batch. GetMany waits for keys
// that another Get or GetMany loads, in any process, and does not fetch them.
//
// fetch receives the keys that this process fetches, each once, and returns a map of their values. A key
// that is not in it has no value, and its absence is remembered. If fetch returns an error,
// that is the error of the keys that are not in the map. fetch is called again, for fewer keys, if
// a load that GetMany waited for ended without a value: its process died, or the key was deleted.
// The context of fetch ends as in Get, and when no caller waits for any of its keys.
//
// The map that GetMany returns has the values of the keys that have one. A key may be given more
// than once. With no keys the map is empty. If keys fail, the error is a [*ManyError] with the
// error of each, and the map has the values of the others. Otherwise it is nil, [ErrClosed], an
// [*Error] for a nil argument, or ctx.Err() if ctx had ended before the call.
func (l *Loader[V]) GetMany(ctx context.Context, keys []string, fetch func(ctx context.Context, keys []string) (map[string]V, error)) (map[string]V, error) {
	all, err := l.manyKeys(ctx, keys, fetch)
	if err != nil {
		return nil, err
	}
	l.lookupAll(ctx, all)
	l.joinAll(ctx, all, fetch)
	reacquire := permit.Yield(ctx, l)
	defer reacquire()
	l.awaitAll(ctx, all)
	retryAll(all)
	for _, w := range all {
		w.out = w.orLastGood(w.out)
		gotByLoad(ctx, &l.trace, w.k.user, w.trace, w.out)
	}
	return l.settleAll(all)
}

// loadsAtOnce is how many keys of a GetMany load again at once.
const loadsAtOnce = 64

// A manyKey is one key of a GetMany: a caller whose lookup and fetch are grouped with those of the
// other keys.
type manyKey[V any] struct {
	caller[V]
	nearTicket near.Ticket                // to keep what is read in the near cache
	ticket     flight.Ticket[*outcome[V]] // of the flight that it has joined
	joined     bool
	retries    bool // it must look up again: it was late, or the outcome is not for it
	lookupOut  outcome[V]
	out        *outcome[V] // lookupOut, or that of a load
}

// has reports whether the lookup answers the key.
func (w *manyKey[V]) has() bool { return w.out.err != nil || w.seen.state == fresh }

// manyKeys checks the arguments of a GetMany, and returns each key once.
func (l *Loader[V]) manyKeys(ctx context.Context, keys []string, fetch func(ctx context.Context, keys []string) (map[string]V, error)) ([]*manyKey[V], error) {
	if _, err := l.checkArgs(ctx, "get many", "", fetch == nil); err != nil {
		return nil, err
	}
	one := func(ctx context.Context, f *Fetch[V]) (V, error) { // for a key that loads again
		values, err := fetch(ctx, []string{f.Key})
		v, ok := values[f.Key]
		if !ok && err == nil {
			err = ErrNotFound
		}
		return v, err
	}
	var all []*manyKey[V]
	came, have := l.flights.Arrive(), make(map[string]bool, len(keys))
	for _, key := range keys {
		if have[key] {
			continue
		}
		have[key] = true
		w := &manyKey[V]{caller: caller[V]{l: l, ctx: ctx, k: l.cacheKey(key), came: came, fetch: one}}
		w.out = &w.lookupOut
		if ctx.Value(fetchKey{l, key}) != nil {
			w.out.err = reentrant(key)
		}
		all = append(all, w)
	}
	return all, nil
}

// lookupAll looks all keys up, without a lease.
func (l *Loader[V]) lookupAll(ctx context.Context, all []*manyKey[V]) {
	if l.opt.TTL == 0 {
		l.lookupAllInStore(ctx, all)
		return
	}
	groups := make(map[*redis.Client][]*manyKey[V]) // by the node of the near ticket; nil without one
	for _, w := range all {
		if hit := l.nearGet(ctx, w.k.user); hit.entry != nil && w.out.err == nil {
			w.seen, w.out.err = l.lookupNear(hit)
			continue
		}
		w.nearTicket = l.nearTicket(w.k)
		groups[w.nearTicket.Node()] = append(groups[w.nearTicket.Node()], w)
	}
	var reads sync.WaitGroup
	for node, group := range groups {
		reads.Go(func() { l.readAll(ctx, l.link.At(node), group) })
	}
	reads.Wait()
}

// readAll reads the values of keys at one node, or at the node of each key.
func (l *Loader[V]) readAll(ctx context.Context, at protocol.Runner, all []*manyKey[V]) {
	keys := make([]protocol.Key, len(all))
	for i, w := range all {
		keys[i] = w.k.names
	}
	l.redis.ReadMany(ctx, at, keys, l.readLimit(), func(i int, got protocol.Got) { all[i].take(got) })
}

// take makes the lookup of a reply. A panic of Clone becomes the error of this key: it reaches the
// caller of GetMany, and not the goroutine that reads.
func (w *manyKey[V]) take(got protocol.Got) {
	if w.out.err != nil {
		return
	}
	flight.Protect(
		func() (_ struct{}, err error) {
			w.seen, err = w.l.fromNodeReply(w.ctx, w.k, w.nearTicket, got)
			return struct{}{}, err
		},
		func(_ struct{}, err error) { w.out.err, w.out.shared = err, flight.IsCrash(err) })
}

func (l *Loader[V]) lookupAllInStore(ctx context.Context, all []*manyKey[V]) {
	keys := make([]string, len(all))
	for i, w := range all {
		keys[i] = w.k.user
	}
	found, errs := l.storeMany(ctx, keys)
	for _, w := range all {
		v, ok := found[w.k.user]
		switch {
		case w.out.err != nil:
		case ok:
			w.seen = lookup[V]{state: fresh, result: Result[V]{Value: v, Source: SourceStore}}
		default:
			w.out.err = errs[w.k.user]
			w.out.shared = flight.IsCrash(w.out.err)
		}
	}
}

// joinAll joins or starts the loads of the keys that the lookup does not answer. The loads
// that it starts share a batch fetch.
func (l *Loader[V]) joinAll(ctx context.Context, all []*manyKey[V], fetch func(ctx context.Context, keys []string) (map[string]V, error)) {
	b := batchfetch.New(l.batchConfig(ctx, fetch))
	defer b.Decide() // all have joined
	m := l.trace.missed()
	for _, w := range all {
		w.trace = m
		if w.has() {
			w.out.result = w.seen.result
			if w.seen.answers() || w.out.err == nil {
				w.trace.byLookup()
			}
			continue
		}
		w.joinBatch(b.Join())
	}
}

// joinBatch joins the load of the key, or starts it as a part of a batch fetch.
func (w *manyKey[V]) joinBatch(batch *batchfetch.Load[V]) {
	o, done := w.answer(batch)
	if done {
		w.out = o
		return
	}
	t, err := w.join(batch)
	if err != nil || !t.Started {
		batch.Decide() // the load is another caller's
	}
	if err != nil {
		w.out.err = ErrClosed
		return
	}
	w.ticket, w.joined = t, true
	w.trace.joined(t.Started)
	if w.seen.state == fallback && w.l.opt.SoftTimeout > 0 {
		_, _ = w.join(nil) // no Wait follows: the flight continues after SoftTimeout
	}
}

// batchConfig returns what the batch fetch of a GetMany works with.
func (l *Loader[V]) batchConfig(ctx context.Context, fetch func(ctx context.Context, keys []string) (map[string]V, error)) batchfetch.Config[V] {
	c := batchfetch.Config[V]{
		Context: ctx, Fetch: fetch, NotFound: ErrNotFound,
		ForKeys: func(ctx context.Context, keys []string) context.Context { return fetchKeys{ctx, l, keySet(keys)} },
		Trace: func(ctx context.Context, c batchfetch.Call) batchfetch.Observer {
			info := TraceFetch{Keys: len(c.Keys), Background: c.Background, Unleased: c.Unleased}
			if len(c.Keys) == 1 {
				info.Key = c.Keys[0]
			}
			return l.trace.fetching(ctx, info)
		},
		Enter: l.acquireBatchPermit,
	}
	if l.opt.Store != nil {
		c.Lookup = l.storeMany
	}
	return c
}

// acquireBatchPermit acquires the permit of a batch fetch, which counts as one fetch.
func (l *Loader[V]) acquireBatchPermit(ctx context.Context) (batchfetch.Entered, error) {
	if l.permits == nil {
		return batchfetch.Entered{Context: ctx, Leave: func() {}}, nil
	}
	p, err := l.acquirePermit(ctx)
	if err != nil {
		return batchfetch.Entered{}, err
	}
	return batchfetch.Entered{Context: p.Context(ctx, l), Leave: p.Release}, nil
}

// awaitAll waits for the loads. A key with a fallback value waits for SoftTimeout at most.
func (l *Loader[V]) awaitAll(ctx context.Context, all []*manyKey[V]) {
	soft := ctx
	if l.opt.SoftTimeout > 0 {
		var cancel context.CancelFunc
		soft, cancel = context.WithTimeout(ctx, l.opt.SoftTimeout)
		defer cancel()
	}
	for _, w := range all {
		if !w.joined {
			continue
		}
		until := ctx
		if w.seen.state == fallback {
			until = soft
		}
		o := w.await(until, w.ticket)
		w.retries = w.late || o.found != nil || o.backoff && w.seen.state != fallback
		w.out = w.orFallback(o)
	}
}

// retryAll loads, one by one, the keys whose flight had no answer for this call.
func retryAll[V any](all []*manyKey[V]) {
	var again errgroup.Group
	again.SetLimit(loadsAtOnce)
	for _, w := range all {
		if !w.retries {
			continue
		}
		again.Go(func() error {
			// A Store may panic: that is for the caller, not for this goroutine.
			flight.Protect(
				func() (*outcome[V], error) { return w.retry(), nil },
				func(o *outcome[V], err error) {
					if w.out = o; err != nil {
						w.out = &outcome[V]{err: err, shared: true}
					}
				})
			return nil
		})
	}
	_ = again.Wait() // the errors are in the outcomes
}

// retry loads the key like a Get that was late: it looks the key up first.
func (w *manyKey[V]) retry() *outcome[V] {
	if o, done := w.lookupAgain(); done {
		return o
	}
	return w.load()
}

// settleAll returns the values and errors of all keys.
func (l *Loader[V]) settleAll(all []*manyKey[V]) (map[string]V, error) {
	values, errs := make(map[string]V, len(all)), make(map[string]error)
	for _, w := range all {
		r, err := l.settle(w.k, w.out)
		switch {
		case err == nil:
			values[w.k.user] = r.Value
		case !errors.Is(err, ErrNotFound):
			errs[w.k.user] = err
		}
	}
	if len(errs) > 0 {
		return values, &ManyError{Errors: errs}
	}
	return values, nil
}

// fetchKeys is the context of a batch fetch: it has a [fetchKey] for each key.
type fetchKeys struct {
	context.Context
	loader any
	keys   map[string]bool
}

func (c fetchKeys) Value(key any) any {
	if f, ok := key.(fetchKey); ok && f.loader == c.loader && c.keys[f.key] {
		return true
	}
	return c.Context.Value(key)
}

func keySet(keys []string) map[string]bool {
	set := make(map[string]bool, len(keys))
	for _, key := range keys {
		set[key] = true
	}
	return set
}

// storeMany looks many keys up in the Store.
func (l *Loader[V]) storeMany(ctx context.Context, keys []string) (found map[string]V, errs map[string]error) {
	s := lookupmany.Store[V]{Lookup: l.opt.Store.Lookup, NotFound: ErrNotFound, ErrorsByKey: errorsByKey}
	if many, ok := l.opt.Store.(manyStore[V]); ok {
		s.LookupMany = many.LookupMany
	}
	return s.Keys(ctx, keys)
}
