package systemtest_test

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
	"github.com/fetchonce/fetchonce/internal/testkit"
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

// newHalfMoved returns a cluster, and the client with which the test reads it.
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
	return testkit.LockerOf(h.t, h.masters.Client(redirected), testkit.ShortLockLease(h.r))
}

// A slot is half moved for longer than a lease: an uncontended lock is not lost, wherever its
// keys are, and is released and taken again.
func TestHalfMovedSlotCostsNoLock(t *testing.T) {
	h := newHalfMoved(t)
	lk := h.locker()
	holder := testkit.Taken(t, h.r, lk)
	h.begin("it")
	for range 2 {
		state, renewals := "", 0
		h.r.Until("the lease is renewed several times", func() bool {
			if now := h.rdb.Get(t.Context(), "test:l:{it}").Val(); now != state {
				state = now
				renewals++
			}
			return renewals > 6 || holder.Ctx.Err() != nil // a lease is three renewals long
		})
		if holder.Ctx.Err() != nil {
			t.Error("the lock was lost in a half moved slot")
		}
		holder.Release(nil)
		holder = testkit.Taken(t, h.r, lk)
		h.move("test:l:{it}")
	}
	h.finish()
	holder.Release(nil)
	if err := lk.Do(t.Context(), "it", testkit.Nothing); err != nil {
		t.Error(err)
	}
}

// A queue cannot be read while a slot is half moved. Its lock still has one holder at a
// time, and each process holds it.
func TestQueueOfAHalfMovedSlotHasOneHolder(t *testing.T) {
	for name, names := range map[string][]string{"the lock is moved": {"test:l:{it}"}, "the queue is moved": {"test:q:{it}", "test:w:{it}"}} {
		t.Run(name, func(t *testing.T) {
			h := newHalfMoved(t)
			lockers := []*fetchonce.Locker{h.locker(), h.locker(), h.locker()}
			holder := testkit.Taken(t, h.r, lockers[0])
			waiter := testkit.Queued(t.Context(), t, h.r, lockers[1], 1)
			h.begin("it", names...)
			holder.Release(nil)
			waiter.Has()

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
			waiter.Release(nil)
			all.Wait()
			h.finish()
			if err := lockers[2].Do(t.Context(), "it", testkit.Nothing); err != nil {
				t.Error(err)
			}
		})
	}
}

// A Delete and an Update in a half moved slot do what they promise.
func TestDeleteAndUpdateInAHalfMovedSlot(t *testing.T) {
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
				fetching, other := testkit.LoaderOf(t, h.rdb, slow), testkit.LoaderOf(t, h.rdb, slow)
				o := testkit.NewOrigin(t)
				o.Ignore = true
				h.rdb.Set(t.Context(), "test:v:{k}", "unusable", time.Hour)
				early := testkit.Get(t, t.Context(), fetching, "k", o)
				old := o.Next()
				h.begin("k", names...)
				if err := change(t, other); err != nil {
					t.Fatalf("%s = %v", name, err)
				}
				if h.rdb.Exists(t.Context(), "test:v:{k}").Val() != 0 {
					t.Errorf("%s has left the value", name)
				}
				<-old.Ctx.Done()
				if !errors.Is(context.Cause(old.Ctx), fetchonce.ErrLockLost) {
					t.Error("the context of the fetch ended with", context.Cause(old.Ctx))
				}
				old.Returns("old")
				early.Want("old")
				if h.rdb.Exists(t.Context(), "test:v:{k}").Val() != 0 {
					t.Errorf("what was fetched before the %s is stored", name)
				}
				h.finish()
				late := testkit.Get(t, t.Context(), other, "k", o)
				o.Next().Returns("new")
				late.Want("new")
				testkit.WantKept(t, fetching, "new")
			})
		}
	}
}

// A fetch ends while its slot is half moved: what it found is not stored, and the
// callers in all processes get it.
func TestValueFetchedInAHalfMovedSlotIsNotStored(t *testing.T) {
	h := newHalfMoved(t)
	slow := func(opt *options) { opt.RedisTimeout = time.Second }
	holder, other := testkit.LoaderOf(t, h.rdb, slow), testkit.LoaderOf(t, h.rdb, slow)
	o := testkit.NewOrigin(t)
	here := testkit.Get(t, t.Context(), holder, "k", o)
	c := o.Next()
	there := testkit.Get(t, t.Context(), other, "k", o)
	testkit.AwaitWaiters(t, h.r, "k", 1)
	h.begin("k") // the lease alone is there
	c.Returns("v")
	here.Want("v")
	there.Want("v")
	o.Want(1)
	h.finish()
	again := testkit.Get(t, t.Context(), other, "k", o)
	o.Next().Returns("v")
	again.Want("v")
	testkit.WantKept(t, holder, "v")
}
