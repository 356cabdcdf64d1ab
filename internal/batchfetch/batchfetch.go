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
	Lookup func(ctx context.Context, keys []string) (found map[string]V, errs map[string]error)

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

	slots chan struct{} // one for each load that uses Redis
	down  chan struct{} // closed when Redis fails: then no load waits for a slot
	fell  sync.Once     // closes down

	mu        sync.Mutex
	undecided int
	wanting   []*member[V] // loads that want to fetch
	started   bool         // all loads are decided
}

// New returns a batch. Its Decide is called when all loads have joined.
func New[V any](c Config[V]) *Batch[V] {
	return &Batch[V]{Config: c, undecided: 1, slots: make(chan struct{}, width), down: make(chan struct{})}
}

// A Load is one key's part in a batch. Its methods but Fetch do nothing on nil.
type Load[V any] struct {
	batch   *Batch[V]
	decided sync.Once
	hasSlot atomic.Bool
}

// Join returns the part of a new load. Its Decide must be called.
func (b *Batch[V]) Join() *Load[V] {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.undecided++
	return &Load[V]{batch: b}
}

// Begin waits until the load may use Redis, or ctx ends.
func (p *Load[V]) Begin(ctx context.Context) {
	if p == nil {
		return
	}
	select {
	case p.batch.slots <- struct{}{}:
		p.hasSlot.Store(true)
	case <-p.batch.down:
	case <-ctx.Done():
	}
}

// Pause says that the load does not use Redis for now. It may be called more than once.
func (p *Load[V]) Pause() {
	if p != nil && p.hasSlot.Swap(false) {
		<-p.batch.slots
	}
}

// RedisFailed says that Redis does not answer. All other loads then find that out at once,
// and not one after another.
func (p *Load[V]) RedisFailed() {
	if p != nil {
		p.batch.fell.Do(func() { close(p.batch.down) })
	}
}

// Decide says that the batch need not wait for the load. It may be called more than once.
func (p *Load[V]) Decide() {
	if p != nil {
		p.decided.Do(p.batch.Decide)
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

// A member is a key that is to be fetched.
type member[V any] struct {
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
	waiting  int      // members that have not left
	observer Observer // nil before Fetch
}

// Fetch has a key fetched with the others, and waits for it. unleased says that the load
// has no lease, background that no caller waits for it.
func (p *Load[V]) Fetch(ctx context.Context, key string, background, unleased bool) (Result[V], error) {
	b := p.batch
	m := &member[V]{key: key, background: background, unleased: unleased, done: make(chan struct{})}
	b.want(m)
	p.Decide()
	p.Pause()
	select {
	case <-m.done:
		p.Begin(ctx) // what was fetched is to be stored
		return m.result, m.err
	case <-ctx.Done():
	}
	select {
	case <-m.done: // at the same moment: what was fetched is not discarded
		return m.result, m.err
	default:
		b.leave(ctx, m)
		return Result[V]{}, ctx.Err()
	}
}

// want adds a member. After the first call, the first member to want a fetch starts another
// call after regroup, for all that want one by then.
func (b *Batch[V]) want(m *member[V]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanting = append(b.wanting, m)
	if b.started && len(b.wanting) == 1 {
		time.AfterFunc(regroup, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.start()
		})
	}
}

// leave removes a member. The last member of a call cancels it.
func (b *Batch[V]) leave(ctx context.Context, m *member[V]) {
	b.mu.Lock()
	c := m.call
	if c == nil {
		b.wanting = slices.DeleteFunc(b.wanting, func(other *member[V]) bool { return other == m })
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
	members := b.wanting
	b.wanting = nil
	if len(members) == 0 {
		return
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(b.Context))
	c := &call{cancel: cancel, waiting: len(members)}
	for _, m := range members {
		m.call = c
	}
	// It ends with Fetch, which may ignore its context.
	go flight.Protect(
		func() (struct{}, error) {
			b.run(b.ForKeys(ctx, keysOf(members)), c, members)
			return struct{}{}, nil
		},
		func(_ struct{}, err error) {
			b.mu.Lock()
			observer := c.observer
			b.mu.Unlock()
			end(observer, err)
			cancel(nil)
			failAll(members, c.fromStore, err) // those that have not ended: Fetch or the Store panicked
		})
}

// run looks the members up in the Store, if there is one, and fetches the rest.
func (b *Batch[V]) run(ctx context.Context, c *call, members []*member[V]) {
	rest := members
	if b.Lookup != nil {
		c.fromStore = true
		rest = b.lookup(ctx, members)
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
	for _, m := range rest {
		if v, ok := values[m.key]; ok {
			m.end(Result[V]{Value: v}, nil)
		} else {
			m.end(Result[V]{}, err)
		}
	}
}

// lookup ends the members that the Store has, and returns the others.
func (b *Batch[V]) lookup(ctx context.Context, members []*member[V]) (rest []*member[V]) {
	found, errs := b.Lookup(ctx, keysOf(members))
	for _, m := range members {
		v, ok := found[m.key]
		if err := errs[m.key]; ok || err != nil {
			m.end(Result[V]{Value: v, FromStore: true}, err)
		} else {
			rest = append(rest, m)
		}
	}
	return rest
}

// observe starts the observer of a call.
func (b *Batch[V]) observe(ctx context.Context, c *call, members []*member[V]) Observer {
	info := Call{Keys: keysOf(members), Background: true}
	for _, m := range members {
		info.Background = info.Background && m.background
		info.Unleased = info.Unleased || m.unleased
	}
	observer := b.Trace(ctx, info)
	b.mu.Lock()
	defer b.mu.Unlock()
	c.observer = observer
	return observer
}

// end ends the wait of a member, once.
func (m *member[V]) end(r Result[V], err error) {
	select {
	case <-m.done:
	default:
		m.result, m.err = r, err
		close(m.done)
	}
}

// failAll ends members with an error.
func failAll[V any](members []*member[V], fromStore bool, err error) {
	for _, m := range members {
		m.end(Result[V]{FromStore: fromStore}, err)
	}
}

func keysOf[V any](members []*member[V]) []string {
	keys := make([]string, len(members))
	for i, m := range members {
		keys[i] = m.key
	}
	return keys
}
