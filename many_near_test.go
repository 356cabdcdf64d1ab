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
	r.Until("the process has copies", func() bool {
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

// asked returns how many values a client has asked for.
func asked(rdb redis.UniversalClient) (n int) {
	for _, name := range redistest.WireOf(rdb).Commands() {
		if name == "GETRANGE" {
			n++
		}
	}
	return n
}

// A batch takes near entries and asks Redis for the rest. A Delete of another process
// removes the entries of its keys, and no others.
//
// A busy machine may miss a heartbeat, and then no entry counts for a moment. So the
// test repeats a round in which Redis was asked for more.
func TestGetManyUsesNearEntries(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, other := testkit.LoaderOf(t, rdb, testkit.WithNear), newLoader(t, r)
		keys := numbered(0, 50)
		gone := keys[20:30]
		wantMany(t, l, keys, &bulk{})
		r.Until("a batch asks Redis for no near key", func() bool {
			warmMany(t, r, l, keys)
			redistest.WireOf(rdb).Reset()
			wantMany(t, l, keys, &bulk{})
			return asked(rdb) == 0
		})
		r.Until("a batch asks Redis for the deleted keys only", func() bool {
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
			n := asked(rdb)
			if n < len(gone) {
				t.Fatalf("Redis was asked for %d keys, want %d", n, len(gone))
			}
			if _, fetched := b.counts(); len(fetched) != len(gone) {
				t.Fatalf("%d keys were fetched, want %d", len(fetched), len(gone))
			}
			return n == len(gone)
		})
	})
}

// A slowCodec stops in the middle of decoding a value, when the test wants it.
type slowCodec struct {
	fetchonce.Codec
	stop chan chan struct{} // holds what it then waits for
	at   chan struct{}      // receives when it has stopped
}

func (c slowCodec) Unmarshal(data []byte, v any) error {
	select {
	case on := <-c.stop:
		c.at <- struct{}{}
		<-on
	default:
	}
	return c.Codec.Unmarshal(data, v)
}

// A key is deleted after a batch has read it, and before the batch is done with it.
// It does not come to be near.
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

		on := make(chan struct{})
		codec.stop <- on
		done := make(chan map[string]string)
		go func() {
			got, err := l.GetMany(t.Context(), []string{"k"}, (&bulk{}).fetch)
			if err != nil {
				t.Error(err)
			}
			done <- got
		}()
		<-codec.at
		for _, key := range []string{"k", next} {
			if err := other.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		r.Until("the second change of the two is heard of, on the same node", func() bool {
			_, err := l.Peek(t.Context(), next)
			return errors.Is(err, fetchonce.ErrNotFound)
		})
		close(on)
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
