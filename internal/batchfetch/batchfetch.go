// Package batchfetch fetches many keys of one GetMany in one call of the user's function.
//
// Each key has a load of its own, which may find its value in Redis, wait for another
// process, or hold a lease. The batch fetch starts when every load is decided: it wants to
// fetch, waits, or has ended.
//
//	Join ──► Begin ──► Decide (waits, or has ended)
//	             └───► Fetch (holds its lease) ──► one call for all that want to fetch
//
// A load that waited may want to fetch after all, when the other process has died. Such
// loads share another call, a few milliseconds later.
package batchfetch

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce/internal/flight"
)

const (
	// width is how many loads of a batch use Redis at once: enough for four full
	// pipelines. If 30,000 did, the process would have no time to read the replies.
	width = 1200

	// regroup is how long a load that wants to fetch after the first call waits for others.
	regroup = 5 * time.Millisecond
)

// A Config says what a batch works with.
type Config[V any] struct {
	Context  context.Context // of the GetMany; only its values are used
	Fetch    func(ctx context.Context, keys []string) (map[string]V, error)
	NotFound error // of a key that Fetch does not return

	// Lookup looks keys up in a Store, before Fetch. It is nil without a Store.
	Lookup func(ctx context.Context, keys []string) (values map[string]V, errs map[string]error)

	// ForKeys returns the context of the calls for some keys.
	ForKeys func(ctx context.Context, keys []string) context.Context

	// Enter runs before Fetch. After an error, Fetch is not called.
	Enter func(ctx context.Context) (Entered, error)

	// Trace returns what observes a call of Fetch.
	Trace func(ctx context.Context, c Call) Observer
}

// An Entered is what a call of Fetch runs in.
type Entered struct {
	Context context.Context
	Leave   func() // called when Fetch has returned
}

// A Call describes one call of Fetch.
type Call struct {
	Keys       []string
	Background bool // no caller waits for any of the keys
	Unleased   bool // a key has no lease
}

// An Observer observes a call. End may be called more than once.
type Observer interface {
	Begin()
	End(err error)
}

// A Batch is the loads of one GetMany.
type Batch[V any] struct {
	Config[V]

	slots       chan struct{} // one for each load that uses Redis
	redisFailed chan struct{} // closed when Redis fails: then no load waits for a slot
	failOnce    sync.Once     // closes redisFailed

	mu        sync.Mutex
	undecided int
	wanting   []*batchKey[V] // loads that want to fetch
	started   bool           // all loads are decided
}

// New returns a batch. Its Decide is called when all loads have joined.
func New[V any](c Config[V]) *Batch[V] {
	return &Batch[V]{Config: c, undecided: 1, slots: make(chan struct{}, width), redisFailed: make(chan struct{})}
}

// A Load is the load of one key of a batch. All methods but Fetch do nothing on nil.
type Load[V any] struct {
	batch   *Batch[V]
	decided sync.Once
	hasSlot atomic.Bool
}

// Join adds a load to the batch. Its Decide must be called.
func (b *Batch[V]) Join() *Load[V] {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.undecided++
	return &Load[V]{batch: b}
}

// Begin waits until the load may use Redis, or ctx ends.
func (l *Load[V]) Begin(ctx context.Context) {
	if l == nil {
		return
	}
	select {
	case l.batch.slots <- struct{}{}:
		l.hasSlot.Store(true)
	case <-l.batch.redisFailed:
	case <-ctx.Done():
	}
}

// Pause says that the load does not use Redis for now. It may be called more than once.
func (l *Load[V]) Pause() {
	if l != nil && l.hasSlot.Swap(false) {
		<-l.batch.slots
	}
}

// RedisFailed says that Redis does not answer. All other loads then find that out at once,
// and not one after another.
func (l *Load[V]) RedisFailed() {
	if l != nil {
		l.batch.failOnce.Do(func() { close(l.batch.redisFailed) })
	}
}

// Decide says that the batch need not wait for the load. It may be called more than once.
func (l *Load[V]) Decide() {
	if l != nil {
		l.decided.Do(l.batch.Decide)
	}
}

// Decide says that one load is decided, or that all have joined.
func (b *Batch[V]) Decide() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.undecided--; b.undecided == 0 {
		b.started = true
		b.start()
	}
}

// A Result is what a fetch returns for one key.
type Result[V any] struct {
	Value     V
	FromStore bool // the value, or the error, is the Store's
}

// A batchKey is a key that is to be fetched.
type batchKey[V any] struct {
	key        string
	background bool
	unleased   bool
	call       *call         // guarded by the batch's mu; nil until it is started
	done       chan struct{} // closed when the rest is set

	result Result[V]
	err    error
}

// A call is one call of Fetch.
type call struct {
	cancel    context.CancelCauseFunc
	fromStore bool // the Store is looked up; for the goroutine of the call alone

	// Guarded by the batch's mu.
	waiting  int      // how many of its keys a load still waits for
	observer Observer // nil before Fetch
}

// Fetch has a key fetched with the others, and waits for it. unleased says that the load
// has no lease, background that no caller waits for it.
func (l *Load[V]) Fetch(ctx context.Context, key string, background, unleased bool) (Result[V], error) {
	b := l.batch
	k := &batchKey[V]{key: key, background: background, unleased: unleased, done: make(chan struct{})}
	b.want(k)
	l.Decide()
	l.Pause()
	select {
	case <-k.done:
		l.Begin(ctx) // what was fetched is to be stored
		return k.result, k.err
	case <-ctx.Done():
	}
	select {
	case <-k.done: // at the same moment: what was fetched is not discarded
		return k.result, k.err
	default:
		b.leave(ctx, k)
		return Result[V]{}, ctx.Err()
	}
}

// want adds a key. After the first call, the first key that is added starts another call after
// regroup, for all keys that were added by then.
func (b *Batch[V]) want(k *batchKey[V]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanting = append(b.wanting, k)
	if b.started && len(b.wanting) == 1 {
		time.AfterFunc(regroup, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.start()
		})
	}
}

// leave removes a key, because its load has left. After the last key of a call, it cancels the call.
func (b *Batch[V]) leave(ctx context.Context, k *batchKey[V]) {
	b.mu.Lock()
	c := k.call
	if c == nil {
		b.wanting = slices.DeleteFunc(b.wanting, func(other *batchKey[V]) bool { return other == k })
		b.mu.Unlock()
		return
	}
	c.waiting--
	last, observer := c.waiting == 0, c.observer
	b.mu.Unlock()
	if last {
		c.cancel(context.Cause(ctx))
		end(observer, ctx.Err())
	}
}

// end ends an observer, if there is one.
func end(o Observer, err error) {
	if o != nil {
		o.End(err)
	}
}

// start starts a call for all that want to fetch. The caller holds b.mu.
func (b *Batch[V]) start() {
	wanted := b.wanting
	b.wanting = nil
	if len(wanted) == 0 {
		return
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(b.Context))
	c := &call{cancel: cancel, waiting: len(wanted)}
	for _, k := range wanted {
		k.call = c
	}
	// It ends with Fetch, which may ignore its context.
	go flight.Protect(
		func() (struct{}, error) {
			b.run(b.ForKeys(ctx, keysOf(wanted)), c, wanted)
			return struct{}{}, nil
		},
		func(_ struct{}, err error) {
			b.mu.Lock()
			observer := c.observer
			b.mu.Unlock()
			end(observer, err)
			cancel(nil)
			failAll(wanted, c.fromStore, err) // those that have not ended: Fetch or the Store panicked
		})
}

// run looks the keys up in the Store, if there is one, and fetches the rest.
func (b *Batch[V]) run(ctx context.Context, c *call, wanted []*batchKey[V]) {
	rest := wanted
	if b.Lookup != nil {
		c.fromStore = true
		rest = b.lookup(ctx, wanted)
		c.fromStore = false
	}
	if len(rest) == 0 {
		return
	}
	entered, err := b.Enter(ctx)
	if err != nil {
		failAll(rest, false, err)
		return
	}
	defer entered.Leave()
	observer := b.observe(entered.Context, c, rest)
	observer.Begin()
	values, err := b.Config.Fetch(entered.Context, keysOf(rest))
	observer.End(err)
	if err == nil {
		err = b.NotFound
	}
	for _, k := range rest {
		if v, ok := values[k.key]; ok {
			k.end(Result[V]{Value: v}, nil)
		} else {
			k.end(Result[V]{}, err)
		}
	}
}

// lookup ends the wait for the keys that the Store has, and returns the others.
func (b *Batch[V]) lookup(ctx context.Context, wanted []*batchKey[V]) (rest []*batchKey[V]) {
	values, errs := b.Lookup(ctx, keysOf(wanted))
	for _, k := range wanted {
		v, ok := values[k.key]
		if err := errs[k.key]; ok || err != nil {
			k.end(Result[V]{Value: v, FromStore: true}, err)
		} else {
			rest = append(rest, k)
		}
	}
	return rest
}

// observe starts the observer of a call.
func (b *Batch[V]) observe(ctx context.Context, c *call, wanted []*batchKey[V]) Observer {
	info := Call{Keys: keysOf(wanted), Background: true}
	for _, k := range wanted {
		info.Background = info.Background && k.background
		info.Unleased = info.Unleased || k.unleased
	}
	observer := b.Trace(ctx, info)
	b.mu.Lock()
	defer b.mu.Unlock()
	c.observer = observer
	return observer
}

// end ends the wait for a key, once.
func (k *batchKey[V]) end(r Result[V], err error) {
	select {
	case <-k.done:
	default:
		k.result, k.err = r, err
		close(k.done)
	}
}

// failAll ends the wait for some keys with an error.
func failAll[V any](wanted []*batchKey[V], fromStore bool, err error) {
	for _, k := range wanted {
		k.end(Result[V]{FromStore: fromStore}, err)
	}
}

func keysOf[V any](wanted []*batchKey[V]) []string {
	keys := make([]string, len(wanted))
	for i, k := range wanted {
		keys[i] = k.key
	}
	return keys
}
