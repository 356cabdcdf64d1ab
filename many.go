package fetchonce

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/fetchonce/fetchonce/internal/bisect"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/near"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// GetMany is like [Loader.Get] for many keys at once: what is kept is read in one
// round trip for each node of Redis and each thousand keys, and what is not is fetched in one batch.
// At most 32 MiB are read from a node at once: values that are larger than that divided
// by the number of keys take further round trips. A
// key that is being loaded, by another GetMany or a Get, here or in another
// process, is waited for, and is not in the batch.
//
// fetch is given keys that this process is to fetch, each once, and returns their
// values. A key that is not in the map it returns is not found, which is
// remembered. If it returns an error, that is the failure of the keys that are
// not in the map. It is called a second time, for fewer keys, where a key had to
// be waited for and its value was then not to be had: another process has died,
// or the key was deleted meanwhile. Its context ends when nobody waits for any of
// its keys any more, and as that of a Get's fetch.
//
// The map has the values that were found. Keys may be given twice, and there may
// be none. The error is nil, or a [*ManyError] with the error of each key that
// failed, beside the map of those that did not; or [ErrClosed], or that of a ctx
// that had ended before.
func (l *Loader[V]) GetMany(ctx context.Context, keys []string, fetch func(ctx context.Context, keys []string) (map[string]V, error)) (map[string]V, error) {
	wanted, err := l.enterMany(ctx, keys, fetch == nil)
	if err != nil {
		return nil, err
	}
	came := l.flights.Arrive() // as in get
	l.lookMany(ctx, wanted)
	l.joinMany(ctx, came, wanted, fetch)
	defer l.yieldPermit(ctx)()
	l.awaitMany(ctx, wanted)

	// A load that came too late for us, as a Get would find it: by itself.
	one := func(ctx context.Context, f *Fetch[V]) (V, error) {
		values, err := fetch(ctx, []string{f.Key})
		v, ok := values[f.Key]
		if !ok && err == nil {
			err = ErrNotFound
		}
		return v, err
	}
	var again errgroup.Group
	again.SetLimit(againAtOnce)
	for _, w := range wanted {
		if w.again {
			again.Go(func() error {
				// A Store may panic: that is for the caller, not for the goroutine.
				flight.Protect(
					func() (struct{}, error) { l.loadAgain(ctx, came, w, one); return struct{}{}, nil },
					func(_ struct{}, err error) {
						if err != nil {
							w.err, w.loaded = err, true
						}
					})
				return nil
			})
		}
	}
	_ = again.Wait() // the errors are in wanted
	for _, w := range wanted {
		l.trace.answered(ctx, w.k.user, w.miss, w.result.Source, w.result.Stale, outcome(w.k.user, w.err))
	}
	return l.settleMany(wanted)
}

// againAtOnce bounds the goroutines of a GetMany that has to look again.
const againAtOnce = 64

// loadAgain goes on as a Get does that has joined a load too late.
func (l *Loader[V]) loadAgain(ctx context.Context, came flight.Arrival, w *wanted[V], fetch func(ctx context.Context, f *Fetch[V]) (V, error)) {
	seen, err := l.look(ctx, w.k)
	if err != nil || seen.found && !seen.refresh {
		w.result, w.err = seen.result, err
		return
	}
	w.result, w.loaded, w.err = l.joinLoad(ctx, w.k, came, seen, fetch, &w.miss)
}

// A wanted is one key of a GetMany.
type wanted[V any] struct {
	k      keyed
	ticket near.Ticket // to keep a copy of what is read
	seen   look[V]
	wait   func(ctx context.Context) (Result[V], bool, error) // not nil once it has joined a load
	again  bool                                               // what was waited for is not good for us
	result Result[V]
	err    error // of the key
	loaded bool  // result and err are those of a load, or err is a panic
	miss   miss
}

// enterMany checks the arguments and returns each key once.
func (l *Loader[V]) enterMany(ctx context.Context, keys []string, noFetch bool) ([]*wanted[V], error) {
	if _, err := l.enter(ctx, "get many", "", noFetch); err != nil {
		return nil, err
	}
	var all []*wanted[V]
	have := make(map[string]bool, len(keys))
	for _, key := range keys {
		if have[key] {
			continue
		}
		have[key] = true
		w := &wanted[V]{k: l.keyed(key)}
		if ctx.Value(fetching{l, key}) != nil {
			w.err = reentrant(key)
		}
		all = append(all, w)
	}
	return all, nil
}

// lookMany looks where values are kept, without a lease.
func (l *Loader[V]) lookMany(ctx context.Context, all []*wanted[V]) {
	if l.opt.TTL == 0 {
		l.lookManyInStore(ctx, all)
		return
	}
	groups := make(map[*redis.Client][]*wanted[V]) // by the node that keeps a near copy true, if one does
	for _, w := range all {
		if c, early := l.nearCopy(ctx, w.k.user); c != nil && w.err == nil {
			w.seen, w.err = l.lookNear(ctx, w.k, c, early)
			continue
		}
		w.ticket = l.ask(w.k)
		groups[w.ticket.Node()] = append(groups[w.ticket.Node()], w)
	}
	var asking sync.WaitGroup
	for node, group := range groups {
		asking.Go(func() { l.readAll(ctx, l.router.At(node), group) })
	}
	asking.Wait()
}

// A GetMany reads so much at once, and decodes it before it reads on.
const (
	readBytes = 32 << 20 // if all values are as large as the read allows
	readKeys  = 2000
	readLeast = 16 << 10 // of each value
)

// readAll reads the values of keys, in one round trip for each thousand if the values are
// not large. Of a value that is larger than its share of readBytes, the first read
// gets the beginning; it is read once more, with few others at a time.
func (l *Loader[V]) readAll(ctx context.Context, at protocol.Runner, all []*wanted[V]) {
	for some := range slices.Chunk(all, readKeys) {
		share := max(readBytes/len(some), readLeast)
		large := l.readSome(ctx, at, some, min(share, l.readLimit()))
		for few := range slices.Chunk(large, max(readBytes/l.readLimit(), 1)) {
			l.readSome(ctx, at, few, l.readLimit())
		}
	}
}

// readSome reads values of up to limit bytes, and returns the keys whose values are
// larger and may still be ours.
func (l *Loader[V]) readSome(ctx context.Context, at protocol.Runner, some []*wanted[V], limit int) (large []*wanted[V]) {
	names := make([]protocol.Key, len(some))
	for i, w := range some {
		names[i] = w.k.names
	}
	for i, got := range l.redis.GetMany(ctx, at, names, limit) {
		if len(got.Value) > limit && limit < l.readLimit() {
			large = append(large, some[i])
			continue
		}
		some[i].take(l, ctx, got)
	}
	return large
}

func (l *Loader[V]) lookManyInStore(ctx context.Context, all []*wanted[V]) {
	keys := make([]string, len(all))
	for i, w := range all {
		keys[i] = w.k.user
	}
	found, errs := l.storeMany(ctx, keys)
	for _, w := range all {
		v, ok := found[w.k.user]
		switch {
		case w.err != nil:
		case ok:
			w.seen = look[V]{found: true, result: Result[V]{Value: v, Source: SourceStore}}
		default:
			w.err = errs[w.k.user]
			w.loaded = isCrash(w.err)
		}
	}
}

// take notes what was read. A panic of Clone is the error of this key, so that it
// reaches the caller of GetMany and not the goroutine that reads.
func (w *wanted[V]) take(l *Loader[V], ctx context.Context, got protocol.Got) {
	if w.err != nil {
		return
	}
	flight.Protect(
		func() (look[V], error) { return l.seeGot(ctx, w.k, w.ticket, got) },
		func(seen look[V], err error) {
			w.seen, w.err, w.loaded = seen, err, isCrash(err)
		})
}

// isCrash reports whether an error of [flight.Protect] is a panic or a Goexit.
func isCrash(err error) bool {
	_, panicked := errors.AsType[*flight.PanicError](err)
	return panicked || errors.Is(err, flight.ErrGoexit)
}

// storeMany looks up many keys in the Store: together, where it can. A Lookup that
// panics is the error of its key.
func (l *Loader[V]) storeMany(ctx context.Context, keys []string) (found map[string]V, errs map[string]error) {
	if s, ok := l.opt.Store.(manyStore[V]); ok {
		return lookupMany(ctx, s, keys)
	}
	errs = make(map[string]error)
	found = make(map[string]V)
	var mu sync.Mutex // guards both
	var all errgroup.Group
	all.SetLimit(againAtOnce)
	for _, key := range keys {
		all.Go(func() error {
			flight.Protect(
				func() (V, error) { return l.opt.Store.Lookup(ctx, key) },
				func(v V, err error) {
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						found[key] = v
					case !errors.Is(err, ErrNotFound):
						errs[key] = err
					}
				})
			return nil
		})
	}
	_ = all.Wait() // the errors are in errs
	return found, errs
}

// lookupMany looks keys up together. If that fails, and the error does not say for
// which keys, halves of them are looked up, so that one bad key fails alone.
func lookupMany[V any](ctx context.Context, s manyStore[V], keys []string) (found map[string]V, errs map[string]error) {
	found = make(map[string]V, len(keys))
	own := make(map[string]error)
	errs = bisect.Keys([][]string{keys}, func(some []string) error {
		values, err := s.LookupMany(ctx, some)
		maps.Copy(found, values)
		if many, ok := errors.AsType[*ManyError](err); ok {
			maps.Copy(own, many.Errors)
			return nil
		}
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}, func(err error) bool { return ctx.Err() != nil || isLost(err) })
	maps.Copy(errs, own)
	maps.DeleteFunc(errs, func(key string, err error) bool {
		_, ok := found[key]
		return ok || errors.Is(err, ErrNotFound)
	})
	return found, errs
}

// isLost reports whether a Store's error says that it cannot be reached.
func isLost(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// joinMany joins or starts the loads of what was not found, and has the batch
// fetch what is ours to fetch.
func (l *Loader[V]) joinMany(ctx context.Context, came flight.Arrival, all []*wanted[V], fetch func(ctx context.Context, keys []string) (map[string]V, error)) {
	b := &gathering[V]{Loader: l, ctx: context.WithoutCancel(ctx), fetch: fetch, undecided: 1, pace: make(chan struct{}, pace), down: make(chan struct{})}
	defer b.decided() // all have joined
	m := l.trace.missed()
	for _, w := range all {
		w.miss = m
		old := w.seen.refresh || w.seen.spare
		if w.err != nil || w.seen.found && !w.seen.refresh || old && l.pauses.active(w.k.user) {
			w.result = w.seen.result
			if w.seen.found || w.err == nil {
				w.miss.old()
			}
			continue
		}
		part := b.part()
		load := l.loading(w.k, w.seen, nil, part)
		ticket, err := l.flights.Join(ctx, w.k.user, came, load)
		switch {
		case err != nil:
			w.err = ErrClosed
		case w.seen.refresh:
			w.result = w.seen.result
			w.miss.old()
		default:
			w.wait = ticket.Wait
			w.miss.joined(ticket.Started)
			if w.seen.spare && l.opt.SoftTimeout > 0 {
				_, _ = l.flights.Join(ctx, w.k.user, came, load) // it goes on without us
			}
		}
		if !ticket.Started {
			part.decide() // another's: nothing for our batch
		}
	}
}

// awaitMany waits for the loads, ours and others'.
func (l *Loader[V]) awaitMany(ctx context.Context, all []*wanted[V]) {
	soft := ctx
	if l.opt.SoftTimeout > 0 {
		var cancel context.CancelFunc
		soft, cancel = context.WithTimeoutCause(ctx, l.opt.SoftTimeout, errSoftTimeout)
		defer cancel()
	}
	for _, w := range all {
		if w.wait == nil {
			continue
		}
		until := ctx
		if w.seen.spare {
			until = soft
		}
		r, late, err := w.wait(until)
		_, paused := errors.AsType[*pausedError](err)
		_, saw := errors.AsType[*sawError[V]](err)
		switch {
		case late || saw || paused && !w.seen.spare:
			w.again = true
		case w.seen.spare && ctx.Err() == nil && isFailure(err):
			w.result = w.seen.result
		default:
			w.result, w.err, w.loaded = r, err, true
		}
	}
}

// settleMany returns what GetMany does.
func (l *Loader[V]) settleMany(all []*wanted[V]) (map[string]V, error) {
	values, errs := make(map[string]V, len(all)), make(map[string]error)
	for _, w := range all {
		r, err := w.result, w.err
		if w.loaded {
			r, err = l.settle(w.k, r, err)
		}
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

// fetchingMany is the context of a batch's fetch: it says what is fetched, as
// that of a Get's does, for many keys.
type fetchingMany struct {
	context.Context
	loader any
	keys   map[string]bool
}

func (c fetchingMany) Value(key any) any {
	if f, ok := key.(fetching); ok && f.loader == c.loader && c.keys[f.key] {
		return true
	}
	return c.Context.Value(key)
}

func keySet[V any](members []*member[V]) map[string]bool {
	set := make(map[string]bool, len(members))
	for _, m := range members {
		set[m.key] = true
	}
	return set
}
