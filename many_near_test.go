package fetchonce_test

import (
	"errors"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// warmMany waits until the near cache has entries for keys that are in Redis.
func warmMany(t *testing.T, r backend, l loader, keys []string) {
	t.Helper()
	r.Until("the process has near entries", func() bool {
		if _, err := l.GetMany(t.Context(), keys, (&bulk{}).fetch); err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if got, err := l.Peek(t.Context(), key); err != nil || got.Source != fetchonce.SourceNear {
				return false
			}
		}
		return true
	})
}

// lookups returns how many keys a client has looked up in Redis.
func lookups(rdb redis.UniversalClient) (n int) {
	for _, name := range redistest.WireOf(rdb).Commands() {
		if name == "GETRANGE" {
			n++
		}
	}
	return n
}

// A GetMany uses near entries and looks up the other keys in Redis. A Delete in another process
// removes the entries of its keys, and no others.
//
// A busy machine may miss a heartbeat, and the near cache is then untrusted. So the test repeats
// a round in which more keys were looked up.
func TestGetManyUsesNearEntries(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb, testkit.WithNear), newLoader(t, r)
		keys := numbered(0, 50)
		gone := keys[20:30]
		wantMany(t, l, keys, &bulk{})
		r.Until("a GetMany looks up no near key in Redis", func() bool {
			warmMany(t, r, l, keys)
			redistest.WireOf(rdb).Reset()
			wantMany(t, l, keys, &bulk{})
			return lookups(rdb) == 0
		})
		r.Until("a GetMany looks up only the deleted keys in Redis", func() bool {
			warmMany(t, r, l, keys)
			if err := other.Delete(t.Context(), gone...); err != nil {
				t.Fatal(err)
			}
			for _, key := range gone {
				r.Until("the entry of "+key+" is gone", func() bool {
					_, err := l.Peek(t.Context(), key)
					return errors.Is(err, fetchonce.ErrNotFound)
				})
			}
			redistest.WireOf(rdb).Reset()
			b := &bulk{}
			wantMany(t, l, keys, b)
			n := lookups(rdb)
			if n < len(gone) {
				t.Fatalf("%d keys were looked up in Redis, want %d", n, len(gone))
			}
			if _, fetched := b.counts(); len(fetched) != len(gone) {
				t.Fatalf("%d keys were fetched, want %d", len(fetched), len(gone))
			}
			return n == len(gone)
		})
	})
}

// A slowCodec stops while it decodes a value, when the test wants it.
type slowCodec struct {
	fetchonce.Codec
	stop    chan chan struct{} // a channel in it stops the next Unmarshal until that is closed
	stopped chan struct{}      // receives when an Unmarshal has stopped
}

func (c slowCodec) Unmarshal(data []byte, v any) error {
	select {
	case proceed := <-c.stop:
		c.stopped <- struct{}{}
		<-proceed
	default:
	}
	return c.Codec.Unmarshal(data, v)
}

// A key is deleted after a GetMany has read it, and before the GetMany keeps it. No near entry
// is made.
func TestDeleteDuringGetManyPreventsTheNearEntry(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		codec := slowCodec{fetchonce.JSON, make(chan chan struct{}, 1), make(chan struct{})}
		withCodec := func(opt *options) { opt.Codec = codec }
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb, testkit.WithNear, withCodec), newLoader(t, r, withCodec)
		next := neighbour(t, rdb, "k")
		for _, key := range []string{"k", next} {
			testkit.Set(t, other, key, "old")
		}
		testkit.WarmNear(t, r, l, next, "old")

		proceed := make(chan struct{})
		codec.stop <- proceed
		done := make(chan map[string]string)
		go func() {
			got, err := l.GetMany(t.Context(), []string{"k"}, (&bulk{}).fetch)
			if err != nil {
				t.Error(err)
			}
			done <- got
		}()
		<-codec.stopped
		for _, key := range []string{"k", next} {
			if err := other.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		r.Until("the second of the two changes, on the same node, is received", func() bool {
			_, err := l.Peek(t.Context(), next)
			return errors.Is(err, fetchonce.ErrNotFound)
		})
		close(proceed)
		if got := <-done; got["k"] != "old" { // it began before the Delete
			t.Errorf("GetMany = %v", got)
		}
		if got, err := l.Peek(t.Context(), "k"); !errors.Is(err, fetchonce.ErrNotFound) {
			t.Errorf("Peek = %+v, %v after the Delete", got, err)
		}
	})
}

// neighbour returns another key of the same node.
func neighbour(t *testing.T, rdb redis.UniversalClient, key string) string {
	t.Helper()
	cluster, ok := rdb.(*redis.ClusterClient)
	if !ok {
		return "next to " + key
	}
	want, err := cluster.MasterForKey(t.Context(), "{"+key+"}")
	for i := 0; err == nil; i++ {
		other := "other" + strconv.Itoa(i)
		node, err := cluster.MasterForKey(t.Context(), "{"+other+"}")
		if err == nil && node == want {
			return other
		}
	}
	t.Fatal(err)
	return ""
}
