package fetchonce_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/programs"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// Any change of a value, by any client, removes its near entry.
func TestChangeRemovesTheNearEntry(t *testing.T) {
	name := func(key string) string { return "test:v:{" + key + "}" }
	for what, change := range map[string]func(t *testing.T, r backend, other loader, rdb redis.UniversalClient) error{
		"Delete elsewhere": func(t *testing.T, _ backend, other loader, _ redis.UniversalClient) error {
			return other.Delete(t.Context(), "k")
		},
		"Set elsewhere": func(t *testing.T, _ backend, other loader, _ redis.UniversalClient) error {
			return other.Set(t.Context(), "k", "new")
		},
		"Update elsewhere": func(t *testing.T, _ backend, other loader, _ redis.UniversalClient) error {
			return other.Update(t.Context(), "k", func(context.Context) error { return nil })
		},
		"DEL": func(t *testing.T, _ backend, _ loader, rdb redis.UniversalClient) error {
			return rdb.Del(t.Context(), name("k")).Err()
		},
		"expiry": func(t *testing.T, _ backend, _ loader, rdb redis.UniversalClient) error {
			return rdb.PExpire(t.Context(), name("k"), 30*time.Millisecond).Err()
		},
		"FLUSHALL": func(t *testing.T, _ backend, _ loader, rdb redis.UniversalClient) error {
			return testkit.FlushAll(t.Context(), rdb)
		},
	} {
		t.Run(what, func(t *testing.T) {
			redistest.EachReal(t, func(t *testing.T, r backend) {
				l, other := newLoader(t, r, testkit.WithNear), newLoader(t, r)
				for _, key := range []string{"k", "other"} {
					testkit.Set(t, other, key, "old")
					testkit.WarmNear(t, r, l, key, "old")
				}
				if err := change(t, r, other, r.Client()); err != nil {
					t.Fatal(err)
				}
				r.Until("the near entry is gone", func() bool {
					got, err := l.Peek(t.Context(), "k")
					return err != nil || got.Value == "new"
				})
				if what != "FLUSHALL" {
					if got, from := testkit.Source(t, l, "other"); from != fetchonce.SourceNear {
						t.Errorf("the near entry of another key is gone: %q came from %v", got, from)
					}
				}
			})
		})
	}
}

// The names of these keys in Redis are not the keys themselves, because of their bytes or length.
func TestWriteOfAnotherClientRemovesTheNearEntry(t *testing.T) {
	r := redistest.Server(t)
	l, other := nearPair(t, r.Backend())
	for _, key := range []string{"", "{k}", "100 % of {all}", "\x00\xff", strings.Repeat("{k}", 22), strings.Repeat("k", 66), strings.Repeat("k", 300)} {
		testkit.Set(t, other, key, "old")
		testkit.WarmNear(t, r.Backend(), l, key, "old")
		testkit.Set(t, other, key, "new")
		r.Backend().Until("the near entry is gone", func() bool {
			got, err := l.Peek(t.Context(), key)
			return err == nil && got.Value == "new"
		})
		testkit.Set(t, l, key, "newer")
		if got, _ := testkit.Source(t, l, key); got != "newer" {
			t.Errorf("%q: the process has %q after its own change to %q", key, got, "newer")
		}
	}
}

// nearPair returns a loader with a near cache, and another one without.
func nearPair(t *testing.T, r backend, change ...func(*options)) (l, other loader) {
	t.Helper()
	return newLoader(t, r, append([]func(*options){testkit.WithNear}, change...)...), newLoader(t, r, change...)
}

func wantSource(t *testing.T, l loader, value string, want fetchonce.Source) {
	t.Helper()
	if got, from := testkit.Source(t, l, "k"); got != value || from != want {
		t.Errorf("Load = %q from %v; want %q from %v", got, from, value, want)
	}
}

// A Get after a change in the same process never returns the old entry.
func TestOwnChangeRemovesTheNearEntryAtOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		rdb := r.Client()
		l, plain := testkit.LoaderOf(t, rdb, testkit.WithNear), testkit.LoaderOf(t, rdb) // one process
		for i := range 50 {
			testkit.Set(t, l, "k", "old")
			testkit.WarmNear(t, r, l, "k", "old")
			by := l
			if i%2 == 1 {
				by = plain
			}
			var err error
			want := "fetched"
			switch i % 3 {
			case 0:
				err = by.Delete(t.Context(), "k")
			case 1:
				want = "new"
				err = by.Set(t.Context(), "k", "new")
			case 2:
				err = by.Update(t.Context(), "k", func(context.Context) error { return nil })
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, from := testkit.Source(t, l, "k"); got != want {
				t.Fatalf("got %q from %v after a change to %q in the same process", got, from, want)
			}
		}
	})
}

// Without CLIENT TRACKING, Loaders publish their changes, and log that once.
func TestLoadersPublishTheirChangesWithoutTracking(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		log := &testkit.Log{}
		l, other := nearPair(t, r, func(opt *options) { opt.Logger = log.Logger() })
		for _, change := range []func() error{
			func() error { return other.Delete(t.Context(), "k") },
			func() error { return other.Set(t.Context(), "k", "new") },
			func() error {
				return other.Update(t.Context(), "k", func(context.Context) error { return nil })
			},
		} {
			testkit.Set(t, other, "k", "old")
			r.Settle()
			testkit.WarmNear(t, r, l, "k", "old")
			if err := change(); err != nil {
				t.Fatal(err)
			}
			r.Settle()
			if got, err := l.Peek(t.Context(), "k"); err == nil && got.Value == "old" {
				t.Errorf("Peek = %+v after a change elsewhere", got)
			}
		}
		if n := log.Count("redis refused CLIENT TRACKING"); n != 1 {
			t.Errorf("the log says %d times that the server refuses", n)
		}
	})
}

// The server sends no notification of a change. The entry is served until Near.TTL ends.
func TestNearTTLEndsTheEntry(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, testkit.WithNear, func(opt *options) { opt.Near.TTL = 10 * time.Second })
		other := newLoader(t, r)
		testkit.Set(t, other, "k", "old")
		testkit.WarmNear(t, r, l, "k", "old")
		kept := time.Now()
		if err := r.Client().Del(t.Context(), "test:v:{k}").Err(); err != nil {
			t.Fatal(err)
		}
		for time.Since(kept) < 9800*time.Millisecond {
			wantSource(t, l, "old", fetchonce.SourceNear)
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Until(kept.Add(10 * time.Second)))
		wantSource(t, l, "fetched", fetchonce.SourceFetch)
	})
}

// A near entry is served only while its value is fresh.
func TestNearEntryIsServedOnlyWhileItIsFresh(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		for _, stale := range []time.Duration{0, time.Hour} {
			l, other := nearPair(t, r, aging(func(opt *options) { opt.StaleIfError = stale }))
			testkit.Set(t, other, "k", "old")
			born := time.Now()
			time.Sleep(30 * time.Second)
			testkit.WarmNear(t, r, l, "k", "old")
			time.Sleep(29 * time.Second)
			wantSource(t, l, "old", fetchonce.SourceNear)
			time.Sleep(time.Until(born.Add(time.Minute)))
			wantSource(t, l, "fetched", fetchonce.SourceFetch)
		}
	})
}

// A Load of a near entry returns the age of its value, not of the entry.
func TestNearEntryHasTheAgeOfItsValue(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l, other := nearPair(t, r)
		testkit.Set(t, other, "k", "v")
		born := time.Now()
		time.Sleep(30 * time.Second)
		testkit.WarmNear(t, r, l, "k", "v")
		time.Sleep(10 * time.Second)
		got, err := l.Load(t.Context(), "k", func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "fetched", nil })
		if age := time.Since(born); got != (fetchonce.Result[string]{Value: "v", Source: fetchonce.SourceNear, Age: age}) || err != nil {
			t.Errorf("Load = %+v, %v; want an age of %v", got, err, age)
		}
	})
}

func TestNearCacheKeepsAnAbsence(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r backend) {
		none := func(context.Context, string) (string, error) { return "", fetchonce.ErrNotFound }
		rdb := r.Client()
		near, other := testkit.LoaderOf(t, rdb, testkit.WithNear, func(opt *options) { opt.NotFoundTTL = time.Hour }), newLoader(t, r)
		r.Until("an absence is near", func() bool {
			redistest.WireOf(rdb).Reset()
			_, err := near.Get(t.Context(), "k", none)
			return err == fetchonce.ErrNotFound && !slices.Contains(redistest.WireOf(rdb).Commands(), "GETRANGE")
		})
		testkit.Set(t, other, "k", "there")
		r.Until("it is there", func() bool {
			got, err := near.Get(t.Context(), "k", none)
			return got == "there" && err == nil
		})
	})
}

// A near entry is shared. With Options.Clone each caller receives a clone.
func TestNearEntryIsCloned(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		l, err := fetchonce.New(r.Client(), fetchonce.Options[[]int]{
			Prefix: "test", Near: fetchonce.Near{Entries: 10}, Clone: slices.Clone[[]int],
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		r.Until("there is a near entry", func() bool {
			got, err := l.Load(t.Context(), "k", func(context.Context, *fetchonce.Fetch[[]int]) ([]int, error) { return []int{1}, nil })
			if err != nil || got.Value[0] != 1 {
				t.Fatalf("Load = %v, %v; another caller has changed the shared value", got, err)
			}
			got.Value[0] = 2
			return got.Source == fetchonce.SourceNear
		})
		for range 3 {
			got, err := l.Get(t.Context(), "k", func(context.Context, string) ([]int, error) { return nil, nil })
			if err != nil || got[0] != 1 {
				t.Fatalf("Get = %v, %v; another caller has changed the shared value", got, err)
			}
			got[0] = 2
		}
	})
}

// EarlyRefresh refreshes a value also if every Get finds a near entry.
func TestEarlyRefreshOfANearEntry(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		o := testkit.NewOrigin(t)
		l := newLoader(t, r, testkit.WithNear, aging(func(opt *options) { opt.EarlyRefresh = 1 }))
		g := testkit.Get(t, t.Context(), l, "k", o)
		c := o.Next()
		time.Sleep(time.Second) // what it costs
		c.Returns("old")
		g.Want("old")
		testkit.WarmNear(t, r, l, "k", "old")
		time.Sleep(40 * time.Second)
		started := time.Now()
		for len(o.Began) == 0 {
			if time.Since(started) > 19*time.Second {
				t.Fatal("the value was not refreshed early")
			}
			if got := result(t, l, o); got.Value != "old" || got.Source != fetchonce.SourceNear {
				t.Errorf("got %+v", got)
			}
			time.Sleep(10 * time.Millisecond)
			r.Settle()
		}
		o.Next().Returns("new")
		r.Settle()
		wantResult(t, result(t, l, o), "new", false)
		o.Want(2)
	})
}

// A change removes the near entry of any key, also one whose name in Redis is encoded.
func TestNearEntryOfAnyKey(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		l, other := nearPair(t, r)
		for _, key := range []string{"", "%", "{a}b", "a\x00b", "é", strings.Repeat("x", 300), "%#abc", "}"} {
			testkit.Set(t, other, key, "old")
			testkit.WarmNear(t, r, l, key, "old")
			testkit.Set(t, other, key, "new")
			r.Until("the near entry of "+key+" is gone", func() bool {
				got, err := l.Peek(t.Context(), key)
				return err == nil && got.Value == "new"
			})
		}
	})
}

func TestLostTrackingConnectionMakesTheNearCacheUntrusted(t *testing.T) {
	redistest.EachReal(t, func(t *testing.T, r backend) {
		l, other := nearPair(t, r)
		rdb := r.Client()
		for range 20 {
			testkit.Set(t, other, "k", "old")
			testkit.WarmNear(t, r, l, "k", "old")
			if err := testkit.KillClients(t.Context(), rdb, "pubsub"); err != nil {
				t.Fatal(err)
			}
			testkit.Set(t, other, "k", "new")
			deadline := time.Now().Add(50 * time.Millisecond)
			for {
				began := time.Now()
				got, from := testkit.Source(t, l, "k")
				if got == "new" {
					break
				}
				if began.After(deadline) {
					t.Fatalf("got %q from %v after the connection was killed", got, from)
				}
			}
		}
	})
}

// A user without the right to CLIENT TRACKING is no error: Loaders publish their changes,
// and log that once, however often they reconnect.
func TestUserWithoutTrackingIsLoggedOnce(t *testing.T) {
	r := redistest.Server(t)
	admin := r.Client()
	if err := admin.Do(t.Context(), "acl", "setuser", "limited", "on", ">secret", "~*", "&*", "+@all", "-client|tracking").Err(); err != nil {
		programs.Lacks(t, "ACL rules that take a subcommand away: "+err.Error())
	}
	log := &testkit.Log{}
	limited := r.Client(func(opt *redis.Options) { opt.Username, opt.Password = "limited", "secret" })
	l := testkit.LoaderOf(t, limited, testkit.WithNear, func(opt *options) { opt.Logger = log.Logger() })
	other := newLoader(t, r.Backend())
	for i := range 5 {
		value := strconv.Itoa(i)
		testkit.Set(t, other, "k", value)
		r.Backend().Until("the change is received", func() bool {
			got, err := l.Peek(t.Context(), "k")
			return err == nil && got.Value == value
		})
		testkit.WarmNear(t, r.Backend(), l, "k", value)
		if err := admin.Do(t.Context(), "client", "kill", "type", "pubsub").Err(); err != nil {
			t.Fatal(err)
		}
	}
	if n := log.Count("redis refused CLIENT TRACKING"); n != 1 {
		t.Errorf("the log says %d times that the server refuses", n)
	}
}

// A Redis user without the right to subscribe has no near entries. Its Loader works.
func TestUserThatCannotSubscribeHasNoNearEntries(t *testing.T) {
	r := redistest.Server(t)
	if err := r.Client().Do(t.Context(), "acl", "setuser", "untracked", "on", ">secret", "~*", "&*", "+@all", "-client|tracking", "-subscribe").Err(); err != nil {
		programs.Lacks(t, "ACL rules that take a subcommand away: "+err.Error())
	}
	log := &testkit.Log{}
	untracked := r.Client(func(opt *redis.Options) { opt.Username, opt.Password = "untracked", "secret" })
	l := testkit.LoaderOf(t, untracked, testkit.WithNear, func(opt *options) { opt.Logger = log.Logger() })
	other := newLoader(t, r.Backend())
	testkit.Set(t, l, "k", "old")
	r.Backend().Until("the refusal is logged", func() bool {
		wantSource(t, l, "old", fetchonce.SourceRedis)
		return log.Count("near cache not used") > 0
	})
	testkit.Set(t, other, "k", "new")
	wantSource(t, l, "new", fetchonce.SourceRedis)
}

// A client that speaks RESP2, in which the server sends no invalidations, has near entries
// too: the tracking connection speaks RESP3.
func TestNearCacheOfARESP2Client(t *testing.T) {
	t.Run("server", func(t *testing.T) {
		r := redistest.Server(t)
		nearByTracking(t, r.Backend(), r.Client(func(opt *redis.Options) { opt.Protocol = 2 }))
	})
	t.Run("cluster", func(t *testing.T) {
		r := redistest.Cluster(t)
		nearByTracking(t, r.Backend(), r.Client(func(opt *redis.ClusterOptions) { opt.Protocol = 2 }))
	})
}

// nearByTracking checks that the server's notification of a plain DEL removes the near entry.
func nearByTracking(t *testing.T, r backend, rdb redis.UniversalClient) {
	t.Helper()
	log := &testkit.Log{}
	l := testkit.LoaderOf(t, rdb, testkit.WithNear, func(opt *options) { opt.Logger = log.Logger() })
	testkit.Set(t, newLoader(t, r), "k", "old")
	testkit.WarmNear(t, r, l, "k", "old")
	if err := r.Client().Del(t.Context(), "test:v:{k}").Err(); err != nil {
		t.Fatal(err)
	}
	r.Until("the near entry is gone", func() bool {
		_, err := l.Peek(t.Context(), "k")
		return err == fetchonce.ErrNotFound
	})
	if n := log.Count("near cache"); n != 0 {
		t.Errorf("the log has %d lines about the near cache, want none", n)
	}
}
