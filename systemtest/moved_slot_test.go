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

// A slotMove is a slot that moves to another node, until finish is called. Meanwhile, keys that
// exist stay on their node until move is called for them, and new keys are made on the other node.
type slotMove struct {
	t        *testing.T
	all      []*redistest.Process
	from, to *redistest.Process
	slot     int
}

// beginMove begins to move the slot of a key.
func beginMove(t *testing.T, key string, from, to *redistest.Process, all []*redistest.Process) *slotMove {
	t.Helper()
	rdb := from.Client()
	defer rdb.Close()
	m := &slotMove{t: t, all: all, from: from, to: to, slot: int(rdb.ClusterKeySlot(t.Context(), key).Val())}
	command(t, to, "cluster", "setslot", m.slot, "importing", command(t, from, "cluster", "myid"))
	command(t, from, "cluster", "setslot", m.slot, "migrating", command(t, to, "cluster", "myid"))
	return m
}

// move moves keys by their names in Redis.
func (m *slotMove) move(names ...string) {
	m.t.Helper()
	host, port, _ := net.SplitHostPort(m.to.Addr())
	for _, name := range names {
		command(m.t, m.from, "migrate", host, port, name, 0, 10000)
	}
}

// moveAll moves all keys of the slot.
func (m *slotMove) moveAll() {
	m.t.Helper()
	rdb := m.from.Client()
	defer rdb.Close()
	m.move(rdb.ClusterGetKeysInSlot(m.t.Context(), m.slot, 100).Val()...)
}

// finish moves all keys and ends the move.
func (m *slotMove) finish() {
	m.t.Helper()
	m.moveAll()
	id := command(m.t, m.to, "cluster", "myid")
	for _, node := range append([]*redistest.Process{m.to, m.from}, m.all...) {
		command(m.t, node, "cluster", "setslot", m.slot, "node", id)
	}
}

// A halfMoved is a cluster with a slot that moves.
type halfMoved struct {
	*slotMove // nil until begin is called

	t       *testing.T
	masters *redistest.Masters
	r       backend
	rdb     *redis.ClusterClient
}

// redirected makes a client follow as many redirections as go-redis does by default.
func redirected(opt *redis.ClusterOptions) { opt.MaxRedirects = 3 }

// newHalfMoved returns a cluster and a client for the test.
func newHalfMoved(t *testing.T) *halfMoved {
	t.Helper()
	c := redistest.Cluster(t)
	return &halfMoved{t: t, masters: c, r: c.Backend(), rdb: c.Client(redirected)}
}

// begin begins to move the slot of a key to another master, and moves the given names.
func (h *halfMoved) begin(key string, names ...string) {
	h.t.Helper()
	nodes := h.masters.Nodes()
	from, to := nodeOf(h.t, h.rdb, nodes, key), nodes[0]
	if to == from {
		to = nodes[1]
	}
	h.slotMove = beginMove(h.t, key, from, to, nodes)
	h.move(names...)
}

func (h *halfMoved) locker() *fetchonce.Locker {
	h.t.Helper()
	return testkit.LockerOf(h.t, h.masters.Client(redirected), testkit.ShortLockLease(h.r))
}

// A slot is half moved for longer than a lease. An uncontended lock is renewed, released and
// acquired again, on whichever node its keys are.
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
			return renewals > 6 || holder.Ctx.Err() != nil // two leases
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

// A queue cannot be read while a slot is half moved. The lock still has one holder at a time, and
// each process acquires it.
func TestQueueOfAHalfMovedSlotHasOneHolder(t *testing.T) {
	for name, names := range map[string][]string{"the lock is moved": {"test:l:{it}"}, "the queue is moved": {"test:q:{it}"}} {
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

// A Delete or Update in a half moved slot deletes the value and ends the lease.
func TestDeleteAndUpdateInAHalfMovedSlotDiscardTheValue(t *testing.T) {
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
					t.Errorf("a value that was fetched before the %s is stored", name)
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

// A fetch returns while its slot is half moved. The value is not stored. All callers in all
// processes receive it.
func TestValueFetchedInAHalfMovedSlotIsNotStored(t *testing.T) {
	h := newHalfMoved(t)
	slow := func(opt *options) { opt.RedisTimeout = time.Second }
	holder, other := testkit.LoaderOf(t, h.rdb, slow), testkit.LoaderOf(t, h.rdb, slow)
	o := testkit.NewOrigin(t)
	here := testkit.Get(t, t.Context(), holder, "k", o)
	c := o.Next()
	there := testkit.Get(t, t.Context(), other, "k", o)
	testkit.AwaitWaiters(t, h.r, "k", 1)
	h.begin("k") // Redis has only the lease
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
