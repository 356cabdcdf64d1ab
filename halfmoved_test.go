package fetchonce_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A halfMoved is a cluster in which the slot of a key is on its way to another node,
// until finish is called: names that exist stay where they are, and what is made anew is
// made on the other node.
type halfMoved struct {
	t        *testing.T
	masters  *redistest.Masters
	r        backend
	rdb      *redis.ClusterClient
	all      []*redistest.Process
	from, to *redistest.Process
	slot     int
}

// redirected has a client follow redirections as often as go-redis does by default.
func redirected(opt *redis.ClusterOptions) { opt.MaxRedirects = 3 }

// newHalfMoved returns a cluster, and the client with which it is looked at.
func newHalfMoved(t *testing.T) *halfMoved {
	t.Helper()
	c := redistest.Cluster(t)
	return &halfMoved{t: t, masters: c, r: c.Backend(), rdb: c.Client(redirected), all: c.Nodes()}
}

// begin begins to move the slot of a key, and moves those of its names.
func (h *halfMoved) begin(key string, names ...string) {
	h.t.Helper()
	h.from, h.to = nodeOf(h.t, h.rdb, h.all, key), h.all[0]
	if h.to == h.from {
		h.to = h.all[1]
	}
	h.slot = int(h.rdb.ClusterKeySlot(h.t.Context(), key).Val())
	tell(h.t, h.to, "cluster", "setslot", h.slot, "importing", tell(h.t, h.from, "cluster", "myid"))
	tell(h.t, h.from, "cluster", "setslot", h.slot, "migrating", tell(h.t, h.to, "cluster", "myid"))
	h.move(names...)
}

func (h *halfMoved) move(names ...string) {
	h.t.Helper()
	host, port, _ := net.SplitHostPort(h.to.Addr())
	for _, name := range names {
		tell(h.t, h.from, "migrate", host, port, name, 0, 10000)
	}
}

// finish moves the rest.
func (h *halfMoved) finish() {
	h.t.Helper()
	rdb := h.from.Client()
	defer rdb.Close()
	h.move(rdb.ClusterGetKeysInSlot(h.t.Context(), h.slot, 100).Val()...)
	for _, node := range append([]*redistest.Process{h.to, h.from}, h.all...) {
		tell(h.t, node, "cluster", "setslot", h.slot, "node", tell(h.t, h.to, "cluster", "myid"))
	}
}

func (h *halfMoved) locker() *fetchonce.Locker {
	h.t.Helper()
	return lockerOf(h.t, h.masters.Client(redirected), shortLockLease(h.r))
}

// A slot is half moved for longer than a lease: a lock that nobody else wants is not
// lost, wherever its names are, and is given back and taken again.
func TestHalfMovedSlotCostsNoLock(t *testing.T) {
	h := newHalfMoved(t)
	lk := h.locker()
	holder := taken(t, h.r, lk)
	h.begin("it")
	for range 2 {
		state, renewals := "", 0
		h.r.Until("the lease is renewed several times", func() bool {
			if now := h.rdb.Get(t.Context(), "test:l:{it}").Val(); now != state {
				state = now
				renewals++
			}
			return renewals > 6 || holder.ctx.Err() != nil // a lease is three renewals long
		})
		if holder.ctx.Err() != nil {
			t.Error("the lock was lost in a half moved slot")
		}
		holder.release(nil)
		holder = taken(t, h.r, lk)
		h.move("test:l:{it}")
	}
	h.finish()
	holder.release(nil)
	if err := lk.Do(t.Context(), "it", nothing); err != nil {
		t.Error(err)
	}
}

// A queue is out of reach while a slot is half moved. Its lock still has one holder at
// a time, and each process has its turns.
func TestQueueOfAHalfMovedSlot(t *testing.T) {
	for name, names := range map[string][]string{"the lock is moved": {"test:l:{it}"}, "the queue is moved": {"test:q:{it}", "test:w:{it}"}} {
		t.Run(name, func(t *testing.T) {
			h := newHalfMoved(t)
			lockers := []*fetchonce.Locker{h.locker(), h.locker(), h.locker()}
			holder := taken(t, h.r, lockers[0])
			waiter := queued(t.Context(), t, h.r, lockers[1], 1)
			h.begin("it", names...)
			holder.release(nil)
			waiter.has()

			var holders atomic.Int32
			var last atomic.Int64
			var all sync.WaitGroup
			for i, lk := range lockers {
				for range 2 {
					all.Go(func() {
						for range 3 {
							ctx, ls, err := lk.Acquire(t.Context(), "it")
							if err != nil {
								t.Errorf("process %d: %v", i, err)
								return
							}
							if n := holders.Add(1); n > 1 {
								t.Errorf("%d holders", n)
							}
							if before := last.Swap(ls.Fence()); before >= ls.Fence() {
								t.Errorf("fence %d after %d", ls.Fence(), before)
							}
							holders.Add(-1)
							if err := ls.Release(); err != nil || ctx.Err() == nil {
								t.Errorf("process %d: Release = %v", i, err)
							}
						}
					})
				}
			}
			waiter.release(nil)
			all.Wait()
			h.finish()
			if err := lockers[2].Do(t.Context(), "it", nothing); err != nil {
				t.Error(err)
			}
		})
	}
}

// A Delete and an Update in a half moved slot do what they promise.
func TestInvalidationInAHalfMovedSlot(t *testing.T) {
	changes := map[string]func(t *testing.T, l loader) error{
		"Delete": func(t *testing.T, l loader) error { return l.Delete(t.Context(), "k") },
		"Update": func(t *testing.T, l loader) error {
			return l.Update(t.Context(), "k", func(context.Context) error { return nil })
		},
	}
	for name, change := range changes {
		for place, names := range map[string][]string{"the value is moved": {"test:v:{k}"}, "the lease is moved": {"test:m:{k}"}} {
			t.Run(name+", "+place, func(t *testing.T) {
				h := newHalfMoved(t)
				slow := func(opt *options) { opt.RedisTimeout = time.Second }
				fetching, other := loaderOf(t, h.rdb, slow), loaderOf(t, h.rdb, slow)
				o := newOrigin(t)
				o.ignore = true
				h.rdb.Set(t.Context(), "test:v:{k}", "unusable", time.Hour)
				early := get(t, t.Context(), fetching, "k", o)
				old := o.next()
				h.begin("k", names...)
				if err := change(t, other); err != nil {
					t.Fatalf("%s = %v", name, err)
				}
				if h.rdb.Exists(t.Context(), "test:v:{k}").Val() != 0 {
					t.Errorf("%s has left the value", name)
				}
				<-old.ctx.Done()
				if !errors.Is(context.Cause(old.ctx), fetchonce.ErrLockLost) {
					t.Error("the context of the fetch ended with", context.Cause(old.ctx))
				}
				old.returns("old")
				early.want("old")
				if h.rdb.Exists(t.Context(), "test:v:{k}").Val() != 0 {
					t.Errorf("what was fetched before the %s is stored", name)
				}
				h.finish()
				late := get(t, t.Context(), other, "k", o)
				o.next().returns("new")
				late.want("new")
				wantKept(t, fetching, "new")
			})
		}
	}
}

// A fetch ends while its slot is half moved: what it found is not stored, and the
// callers in all processes get it.
func TestFetchEndsInAHalfMovedSlot(t *testing.T) {
	h := newHalfMoved(t)
	slow := func(opt *options) { opt.RedisTimeout = time.Second }
	holder, other := loaderOf(t, h.rdb, slow), loaderOf(t, h.rdb, slow)
	o := newOrigin(t)
	here := get(t, t.Context(), holder, "k", o)
	c := o.next()
	there := get(t, t.Context(), other, "k", o)
	awaitWaiters(t, h.r, "k", 1)
	h.begin("k") // the lease alone is there
	c.returns("v")
	here.want("v")
	there.want("v")
	o.want(1)
	h.finish()
	again := get(t, t.Context(), other, "k", o)
	o.next().returns("v")
	again.want("v")
	wantKept(t, holder, "v")
}
