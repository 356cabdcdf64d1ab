package peer_test

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// Each adapter returns the fetched value and fetches once. A broken adapter would seem fast.
func TestEveryLoaderFetchesOnce(t *testing.T) {
	eachLoader(t, func(peer.Kind) bool { return true }, func(t *testing.T, l peer.Loader, addr string) {
		for _, near := range []bool{false, true} {
			if near && !l.Kind.Near || !near && l.Kind.Local {
				continue
			}
			t.Run(fmt.Sprintf("near=%t", near), func(t *testing.T) {
				a := open(t, l, addr, near)
				var fetches atomic.Int32
				key := t.Name()
				first := get(t, a, key, &fetches, 0)
				if first.Name != key || len(first.Tags) != 2 {
					t.Fatalf("the value is %+v", first)
				}
				if l.Kind.Late {
					untilStored(t, a, key, &fetches)
				}
				if second := get(t, a, key, &fetches, 0); !reflect.DeepEqual(normal(first), normal(second)) {
					t.Errorf("first %+v, then %+v", first, second)
				}
				if n := fetches.Load(); n != 1 {
					t.Errorf("%d fetches, want 1", n)
				}
			})
		}
	})
}

// Each Loader of the kind Once fetches once in two processes.
func TestOnceLoadersFetchOnceInTwoProcesses(t *testing.T) {
	once := func(k peer.Kind) bool { return k.Once }
	eachLoader(t, once, func(t *testing.T, l peer.Loader, addr string) {
		procs := []peer.Adapter{open(t, l, addr, false), open(t, l, addr, false)}
		var fetches atomic.Int32
		var callers sync.WaitGroup
		for i := range 50 {
			callers.Go(func() { get(t, procs[i%2], t.Name(), &fetches, 100*time.Millisecond) })
		}
		callers.Wait()
		if n := fetches.Load(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

func TestManyGettersReturnAllKeys(t *testing.T) {
	eachLoader(t, func(k peer.Kind) bool { return k.Many }, func(t *testing.T, l peer.Loader, addr string) {
		a := open(t, l, addr, false)
		keys := make([]string, 20)
		for i := range keys {
			keys[i] = fmt.Sprintf("many:%s:%d", l.Name, i)
			var fetches atomic.Int32
			get(t, a, keys[i], &fetches, 0)
			if l.Kind.Late {
				untilStored(t, a, keys[i], &fetches)
			}
		}
		got, err := a.(peer.ManyGetter).GetMany(t.Context(), keys)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if got[key].Name != key {
				t.Errorf("%s is %+v", key, got[key])
			}
		}
	})
}

// Each Loader of the kind Subscribes drops its near entry after a change.
func TestLoadersThatSubscribeDropTheirEntries(t *testing.T) {
	subscribes := func(k peer.Kind) bool { return k.Subscribes }
	eachLoader(t, subscribes, func(t *testing.T, l peer.Loader, addr string) {
		here, there := open(t, l, addr, true), open(t, l, addr, true)
		var fetches atomic.Int32
		get(t, here, t.Name(), &fetches, 0)
		get(t, there, t.Name(), &fetches, 0)
		if err := there.(peer.Deleter).Delete(t.Context(), t.Name()); err != nil {
			t.Fatal(err)
		}
		for fetches.Load() < 2 {
			if t.Context().Err() != nil {
				t.Fatal("the copy was never dropped")
			}
			get(t, here, t.Name(), &fetches, 0)
		}
	})
}

func eachLoader(t *testing.T, which func(peer.Kind) bool, f func(t *testing.T, l peer.Loader, addr string)) {
	addr := redistest.TCPServer(t).Addr()
	for _, l := range peer.Loaders {
		if which(l.Kind) {
			t.Run(l.Name, func(t *testing.T) { f(t, l, addr) })
		}
	}
}

func open(t *testing.T, l peer.Loader, addr string, near bool) peer.Adapter {
	t.Helper()
	a, err := l.Open(t.Context(), peer.Config{Addr: addr, TTL: time.Minute, Near: near})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// get returns the value of key. A fetch sleeps for long and is counted in fetches.
func get(t *testing.T, a peer.Adapter, key string, fetches *atomic.Int32, long time.Duration) peer.Thing {
	t.Helper()
	v, err := a.Get(t.Context(), key, func(_ context.Context, key string) (peer.Thing, error) {
		fetches.Add(1)
		time.Sleep(long)
		return peer.Thing{ID: 7, Name: key, Tags: []string{"a", "b"}, Created: time.Unix(1e9, 0), Score: 0.5}, nil
	})
	if err != nil {
		t.Error(err)
	}
	return v
}

// untilStored calls get until no call fetches, and then sets fetches to 1.
func untilStored(t *testing.T, a peer.Adapter, key string, fetches *atomic.Int32) {
	t.Helper()
	for before := int32(0); before != fetches.Load(); {
		if t.Context().Err() != nil {
			t.Fatal("it was never stored")
		}
		before = fetches.Load()
		get(t, a, key, fetches, 0)
	}
	fetches.Store(1)
}

// normal returns v with Created in UTC, because codecs differ in the time zone.
func normal(v peer.Thing) peer.Thing {
	v.Created = v.Created.UTC()
	return v
}
