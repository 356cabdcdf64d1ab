package fetchonce

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fetchonce/fetchonce/internal/flight"
)

// A gathering has the loads of one GetMany fetch together. It waits until each of
// them is decided: it holds its lease and wants to fetch, or waits for another
// process, or has ended without a fetch. Then it fetches for those that want to.
//
// A load that had to wait may want to fetch after all, if the other process has
// died. Such late ones, of which there may be many, are gathered for a moment.
type gathering[V any] struct {
	*Loader[V]
	ctx   context.Context // the caller's, without its end
	fetch func(ctx context.Context, keys []string) (map[string]V, error)

	pace chan struct{} // a permit for each load that may use Redis now
	down chan struct{} // closed when Redis does not answer: nobody waits for a permit any more
	fell sync.Once     // closes down

	mu        sync.Mutex
	undecided int
	members   []*member[V] // that want to fetch
	started   bool         // the first fetch, or there was none
}

// pace is how many loads of a GetMany use Redis at once: enough for four full
// pipelines. If all of 30,000 did, the process would have no time to read the answers.
const pace = 1200

// gatherLate is for how long late ones are gathered.
const gatherLate = 5 * time.Millisecond

// A part is one load's part in a gathering.
type part[V any] struct {
	gathering *gathering[V]
	once      sync.Once
	paced     atomic.Bool // it has a permit of pace
}

// begin waits until the load may use Redis, or its context ends.
func (p *part[V]) begin(ctx context.Context) {
	select {
	case p.gathering.pace <- struct{}{}:
		p.paced.Store(true)
	case <-p.gathering.down:
	case <-ctx.Done():
	}
}

// lostRedis says that Redis does not answer. All other loads then find that out at
// once, and not one after another.
func (p *part[V]) lostRedis() {
	if p != nil {
		p.gathering.fell.Do(func() { close(p.gathering.down) })
	}
}

// pause says that the load does not use Redis for now. It may be called more than
// once, and on no part at all.
func (p *part[V]) pause() {
	if p != nil && p.paced.Swap(false) {
		<-p.gathering.pace
	}
}

func (g *gathering[V]) part() *part[V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.undecided++
	return &part[V]{gathering: g}
}

// decide says that the gathering need not wait for this load. It may be called
// more than once, and on no part at all.
func (p *part[V]) decide() {
	if p != nil {
		p.once.Do(p.gathering.decided)
	}
}

func (g *gathering[V]) decided() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.undecided--; g.undecided == 0 {
		g.started = true
		g.start()
	}
}

// A member is a key that is to be fetched in a batch.
type member[V any] struct {
	key    string
	behind bool // see TraceFetch
	blind  bool
	round  *round[V]
	done   chan struct{} // closed when the rest is set

	value  V
	source Source
	err    error
}

// A round is one fetch of a gathering.
type round[V any] struct {
	cancel  context.CancelCauseFunc
	inStore bool // the Store is looked up; for the goroutine of the fetch alone

	// Guarded by the gathering's mu.
	present int         // members that still wait
	trace   *fetchTrace // of the fetch, once it is about to begin
}

// get has a key fetched with the others, and waits for that.
func (p *part[V]) get(ctx context.Context, key string, behind, blind bool) (V, Source, error) {
	g := p.gathering
	m := &member[V]{key: key, behind: behind, blind: blind, done: make(chan struct{})}
	g.mu.Lock()
	g.members = append(g.members, m)
	if g.started && len(g.members) == 1 {
		time.AfterFunc(gatherLate, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.start()
		})
	}
	g.mu.Unlock()
	p.decide()
	p.pause()
	select {
	case <-m.done:
		p.begin(ctx) // what was fetched is to be stored
		return m.value, m.source, m.err
	case <-ctx.Done():
	}
	select {
	case <-m.done: // at the same moment: what was fetched is not thrown away
		return m.value, m.source, m.err
	default:
		if r, trace := g.leave(m); r != nil {
			r.cancel(context.Cause(ctx))
			trace.end(ctx.Err())
		}
		var zero V
		return zero, SourceFetch, ctx.Err()
	}
}

// leave takes a member off. It returns the member's round when no member is left in
// it, for the caller to cancel, and the trace of its fetch if there is one.
func (g *gathering[V]) leave(m *member[V]) (*round[V], *fetchTrace) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.round == nil { // not under way yet
		for i, other := range g.members {
			if other == m {
				g.members = append(g.members[:i], g.members[i+1:]...)
				break
			}
		}
		return nil, nil
	}
	if m.round.present--; m.round.present > 0 {
		return nil, nil
	}
	return m.round, m.round.trace
}

// start starts a fetch for those who want one. The caller holds g.mu.
func (g *gathering[V]) start() {
	members := g.members
	g.members = nil
	if len(members) == 0 {
		return
	}
	ctx, cancel := context.WithCancelCause(g.ctx)
	r := &round[V]{cancel: cancel, present: len(members)}
	for _, m := range members {
		m.round = r
	}
	// Ends by itself, or goes on alone if the fetch does not heed its context.
	go flight.Protect(
		func() (struct{}, error) {
			g.serve(fetchingMany{ctx, g.Loader, keySet(members)}, r, members)
			return struct{}{}, nil
		},
		func(_ struct{}, err error) {
			g.traceOf(r).end(err) // if it panicked
			cancel(nil)
			failAll(members, r.source(), err) // those that have not ended: the fetch or the Store panicked
		})
}

// end tells a member what it was waiting for, once.
func (m *member[V]) end(v V, source Source, err error) {
	select {
	case <-m.done:
	default:
		m.value, m.source, m.err = v, source, err
		close(m.done)
	}
}

// serve looks all members up in the Store, if there is one, and fetches the rest.
func (g *gathering[V]) serve(ctx context.Context, r *round[V], members []*member[V]) {
	rest := members
	if g.opt.Store != nil {
		r.inStore = true
		rest = g.serveFromStore(ctx, members)
		r.inStore = false
	}
	if len(rest) == 0 {
		return
	}
	if g.permits != nil {
		permit, err := g.permits.acquire(ctx, func() bool { return false })
		if err != nil {
			failAll(rest, SourceFetch, err)
			return
		}
		defer permit.release()
		ctx = context.WithValue(ctx, permitOf{g.Loader}, permit)
	}
	trace := g.fetching(ctx, r, rest)
	trace.begin()
	values, err := g.fetch(ctx, keysOf(rest))
	trace.end(err)
	if err == nil {
		err = ErrNotFound // of what is not in the map
	}
	for _, m := range rest {
		if v, ok := values[m.key]; ok {
			m.end(v, SourceFetch, nil)
		} else {
			m.end(v, SourceFetch, err)
		}
	}
}

// failAll ends members with an error.
func failAll[V any](members []*member[V], source Source, err error) {
	for _, m := range members {
		m.end(*new(V), source, err)
	}
}

// source returns what the round calls now, for its own goroutine.
func (r *round[V]) source() Source {
	if r.inStore {
		return SourceStore
	}
	return SourceFetch
}

// fetching returns the trace of the fetch for some members.
func (g *gathering[V]) fetching(ctx context.Context, r *round[V], members []*member[V]) *fetchTrace {
	info := TraceFetch{Keys: len(members), Background: true}
	if len(members) == 1 {
		info.Key = members[0].key
	}
	for _, m := range members {
		info.Background = info.Background && m.behind
		info.Unleased = info.Unleased || m.blind
	}
	trace := g.trace.fetching(ctx, info)
	g.mu.Lock()
	defer g.mu.Unlock()
	r.trace = trace
	return trace
}

func (g *gathering[V]) traceOf(r *round[V]) *fetchTrace {
	g.mu.Lock()
	defer g.mu.Unlock()
	return r.trace
}

// serveFromStore serves those that have a row, and returns the others.
func (g *gathering[V]) serveFromStore(ctx context.Context, members []*member[V]) (rest []*member[V]) {
	found, errs := g.storeMany(ctx, keysOf(members))
	for _, m := range members {
		v, ok := found[m.key]
		switch err := errs[m.key]; {
		case ok || err != nil && !errors.Is(err, ErrNotFound):
			m.end(v, SourceStore, err)
		default:
			rest = append(rest, m)
		}
	}
	return rest
}

func keysOf[V any](members []*member[V]) []string {
	keys := make([]string, len(members))
	for i, m := range members {
		keys[i] = m.key
	}
	return keys
}
