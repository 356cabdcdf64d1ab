package fetchonce_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"expvar"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncehttp"
	"github.com/fetchonce/fetchonce/oncesql"
)

// A Thing is what a slow API returns.
type Thing struct{ Name string }

// api stands for the slow API of the examples.
type api struct {
	mu    sync.Mutex
	calls int
}

func (a *api) fetch(_ context.Context, name string) (Thing, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	if name == "unicorn" {
		return Thing{}, fmt.Errorf("%s: %w", name, fetchonce.ErrNotFound)
	}
	return Thing{Name: name}, nil
}

// newRedis returns a client of a Redis in memory.
func newRedis() (rdb *redis.Client, end func()) {
	server := miniredis.NewMiniRedis()
	if err := server.Start(); err != nil {
		panic(err)
	}
	rdb = redis.NewClient(&redis.Options{Addr: server.Addr()})
	return rdb, func() {
		_ = rdb.Close()
		server.Close()
	}
}

// The second Get returns the value that the first one stored.
func Example() {
	rdb, end := newRedis()
	defer end()
	ctx := context.Background()
	remote := &api{}

	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things"})
	if err != nil {
		panic(err)
	}
	defer things.Close()

	thing, err := things.Get(ctx, "teapot", func(ctx context.Context, name string) (Thing, error) {
		return remote.fetch(ctx, name) // runs once, for every caller in every process
	})
	if err != nil {
		panic(err)
	}

	again, _ := things.Get(ctx, "teapot", remote.fetch)
	fmt.Println(thing.Name, again.Name, remote.calls)
	// Output: teapot teapot 1
}

// The absence of a value is remembered for Options.NotFoundTTL.
func ExampleLoader_Get_notFound() {
	rdb, end := newRedis()
	defer end()
	ctx, remote := context.Background(), &api{}
	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things"})
	if err != nil {
		panic(err)
	}
	defer things.Close()

	for range 2 {
		_, err := things.Get(ctx, "unicorn", remote.fetch)
		fmt.Println(errors.Is(err, fetchonce.ErrNotFound), remote.calls)
	}
	// Output:
	// true 1
	// true 1
}

// A sentinel of Options.Errors is the same error in every process.
func ExampleOptions_errors() {
	rdb, end := newRedis()
	defer end()
	errRateLimited := errors.New("rate limited")
	fetch := func(context.Context, string) (Thing, error) {
		return Thing{}, fmt.Errorf("the API answered 429: %w", errRateLimited)
	}

	for range 2 { // as two processes
		things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{
			Prefix:   "things",
			ErrorTTL: time.Minute,
			Errors:   []error{errRateLimited}, // errors.Is holds in every process
		})
		if err != nil {
			panic(err)
		}
		defer things.Close()
		_, err = things.Get(context.Background(), "teapot", fetch)
		fmt.Println(errors.Is(err, errRateLimited), err)
	}
	// Output:
	// true the API answered 429: rate limited
	// true the API answered 429: rate limited
}

// Load returns the source of the value, and its fetch can set the value's TTL.
func ExampleLoader_Load() {
	rdb, end := newRedis()
	defer end()
	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things"})
	if err != nil {
		panic(err)
	}
	defer things.Close()

	fetch := func(_ context.Context, f *fetchonce.Fetch[Thing]) (Thing, error) {
		f.TTL = time.Hour
		return Thing{Name: f.Key}, nil
	}
	for range 2 {
		got, err := things.Load(context.Background(), "teapot", fetch)
		fmt.Println(got.Value.Name, got.Source, err)
	}
	// Output:
	// teapot fetch <nil>
	// teapot redis <nil>
}

// With a Store, a fetched value is inserted into a table, one row for each key. A key
// that has a row is not fetched again.
func ExampleNew_store() {
	rdb, end := newRedis()
	defer end()
	db := openDatabase() // *sql.DB, with a driver that you import
	defer db.Close()
	ctx, remote := context.Background(), &api{}

	table, err := oncesql.New(db, oncesql.Options[Thing]{Dialect: oncesql.Postgres, Table: "things"})
	if err != nil {
		panic(err)
	}
	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{
		Prefix: "things",
		Store:  table, // looked up before each fetch; a fetched value is inserted
	})
	if err != nil {
		panic(err)
	}
	defer things.Close()
	thing, err := things.Get(ctx, "teapot", remote.fetch)

	_, _ = thing, err
	fmt.Println(remote.calls)
	// Output: 0
}

// After a Delete, the next Get fetches the value again. A fetch that is running during
// the Delete does not store its value.
func ExampleLoader_Delete() {
	rdb, end := newRedis()
	defer end()
	ctx := context.Background()
	prices, err := fetchonce.New(rdb, fetchonce.Options[int]{Prefix: "prices"})
	if err != nil {
		panic(err)
	}
	defer prices.Close()
	price := 250
	fetch := func(context.Context, string) (int, error) { return price, nil }

	before, _ := prices.Get(ctx, "tea", fetch)
	price = 270
	if err := prices.Delete(ctx, "tea"); err != nil {
		panic(err) // caches may be stale until the TTL
	}
	after, _ := prices.Get(ctx, "tea", fetch)
	fmt.Println(before, after)
	// Output: 250 270
}

// A Search is the argument of a slow function.
type Search struct {
	Text string
	Page int
}

func (a *api) search(_ context.Context, s Search) ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	return []string{s.Text + " page " + fmt.Sprint(s.Page)}, nil
}

// Wrap returns a function that caches the results of another one. Key makes the
// argument a key.
func ExampleWrap() {
	rdb, end := newRedis()
	defer end()
	ctx, remote := context.Background(), &api{}

	results, err := fetchonce.New(rdb, fetchonce.Options[[]string]{Prefix: "searches"})
	if err != nil {
		panic(err)
	}
	defer results.Close()
	search := fetchonce.Wrap(results, nil, remote.search)

	found, err := search.Get(ctx, Search{Text: "teapot", Page: 1}) // instead of remote.search(ctx, …)

	again, _ := search.Get(ctx, Search{Text: "teapot", Page: 1})
	fmt.Println(found, again, err, remote.calls)
	// Output: [teapot page 1] [teapot page 1] <nil> 1
}

// Serialize returns a function that runs one call at a time for each argument, in all
// processes.
func ExampleSerialize() {
	rdb, end := newRedis()
	defer end()
	ctx, remote := context.Background(), &api{}

	locker, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "locks"})
	if err != nil {
		panic(err)
	}
	defer locker.Close()
	fetch := fetchonce.Serialize(locker, nil, remote.fetch)
	thing, err := fetch(ctx, "teapot") // waits while another process fetches it

	fmt.Println(thing.Name, err)
	// Output: teapot <nil>
}

// A name function that ignores its argument makes one lock for all calls.
func ExampleSerialize_name() {
	rdb, end := newRedis()
	defer end()
	remote := &api{}
	locker, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "locks"})
	if err != nil {
		panic(err)
	}
	defer locker.Close()

	fetch := fetchonce.Serialize(locker, func(string) string { return "the API" }, remote.fetch)
	thing, err := fetch(context.Background(), "teapot")
	fmt.Println(thing.Name, err)
	// Output: teapot <nil>
}

// One process at a time runs the function. The others wait, or leave when their context
// ends.
func ExampleLocker_Do() {
	rdb, end := newRedis()
	defer end()
	ctx := context.Background()
	sendReport := func(context.Context) error { return nil }

	locker, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "locks"})
	if err != nil {
		panic(err)
	}
	defer locker.Close()

	err = locker.Do(ctx, "daily-report", func(ctx context.Context) error {
		return sendReport(ctx) // ctx ends if the lock is lost
	})

	fmt.Println(err)
	// Output: <nil>
}

// The fence of a lease refuses a write of a holder whose lease has ended.
func ExampleLocker_Acquire() {
	rdb, end := newRedis()
	defer end()
	locker, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "locks"})
	if err != nil {
		panic(err)
	}
	defer locker.Close()
	db := openDatabase() // *sql.DB, with a driver that you import
	defer db.Close()
	pay := func(ctx context.Context, state string) error {
		ctx, lease, err := locker.Acquire(ctx, "invoice:42")
		if err != nil {
			return err
		}
		defer lease.Release()
		res, err := db.ExecContext(ctx, `UPDATE invoices SET state = $1, fence = $2 WHERE id = 42 AND fence < $2`, state, lease.Fence())
		// no row: a later holder has written already
		_ = res
		return err
	}

	fmt.Println(pay(context.Background(), "paid"))
	// Output: no database
}

func ExampleKey() {
	fmt.Println(fetchonce.Key("teapot", 3))
	fmt.Println(fetchonce.Key("teapot,3"))
	fmt.Println(fetchonce.Key(int64(3), 1.5, nil))
	fmt.Println(fetchonce.Key(Search{Text: "teapot", Page: 1}))
	fmt.Println(fetchonce.Key([]string{"hot", "black"}, map[string]bool{"milk": false, "lemon": true}))
	// Output:
	// "teapot",3
	// "teapot,3"
	// int64(3),float64(1.5),nil
	// github.com/fetchonce/fetchonce_test.Search(Text:"teapot",Page:1)
	// []string(["hot","black"]),map[string]bool(["lemon":true,"milk":false])
}

// One request is handled at a time, in all processes. The others wait. When a client
// disconnects, its request leaves the queue.
func Example_http() {
	rdb, end := newRedis()
	defer end()
	locker, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "locks"})
	if err != nil {
		panic(err)
	}
	defer locker.Close()
	heavyStats := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(w, "a heavy answer about", r.PathValue("part"))
	})
	mux := http.NewServeMux()

	oneAtATime := oncehttp.Serialize(locker, func(*http.Request) string { return "stats" })
	mux.Handle("GET /stats/{part}", oneAtATime(heavyStats))

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/stats/visitors", nil))
	fmt.Print(w.Body)
	// Output: a heavy answer about visitors
}

// A request waits for the lock for two seconds at most.
func Example_httpLimits() {
	rdb, end := newRedis()
	defer end()
	locker, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "locks"})
	if err != nil {
		panic(err)
	}
	defer locker.Close()
	stats := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "a heavy answer") })
	mux := http.NewServeMux()

	mux.Handle("/stats", oncehttp.Serialize(locker, nil,
		oncehttp.MaxWait(2*time.Second), // 0: a request does not wait
		oncehttp.MaxWaiters(100),        // of one path, in this process
	)(stats))

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/stats", nil))
	fmt.Print(w.Body)
	// Output: a heavy answer
}

// Trace counts Gets by kind and source in an expvar, and logs slow fetches.
func ExampleTrace() {
	rdb, end := newRedis()
	defer end()
	ctx, remote := context.Background(), &api{}
	logger := slog.New(slog.DiscardHandler)

	gets := new(expvar.Map)
	trace := &fetchonce.Trace{
		Got: func(_ context.Context, g fetchonce.TraceGet) {
			gets.Add(g.Kind.String()+" "+g.Source.String(), 1)
		},
		Fetched: func(ctx context.Context, f fetchonce.TraceFetch) {
			if f.Took > time.Second {
				logger.WarnContext(ctx, "a slow fetch", "took", f.Took)
			}
		},
	}
	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things", Trace: trace})
	if err != nil {
		panic(err)
	}
	defer things.Close()
	for range 3 {
		_, _ = things.Get(ctx, "teapot", remote.fetch)
	}

	fmt.Println(gets)
	// Output: {"hit redis": 2, "miss fetch": 1}
}

func openDatabase() *sql.DB { return sql.OpenDB(noDatabase{}) }

// noDatabase stands for a driver. It has no connections.
type noDatabase struct{}

func (noDatabase) Connect(context.Context) (driver.Conn, error) {
	return nil, errors.New("no database")
}
func (noDatabase) Driver() driver.Driver { return nil }
