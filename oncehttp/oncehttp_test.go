package oncehttp_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/oncehttp"
)

// newLocker returns the locker of a new process.
func newLocker(t *testing.T, rdb redis.UniversalClient) *fetchonce.Locker {
	t.Helper()
	lk, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lk.Close() })
	return lk
}

// A view is a handler that answers when a test says so.
type view struct {
	began  chan *http.Request
	answer chan func(w http.ResponseWriter) // each request takes one; nil says "done"

	mu        sync.Mutex
	now, most int
}

func newView() *view {
	return &view{began: make(chan *http.Request, 100), answer: make(chan func(http.ResponseWriter), 100)}
}

func (v *view) count(n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.now += n
	v.most = max(v.most, v.now)
}

func (v *view) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.count(1)
	defer v.count(-1)
	v.began <- r
	if do := <-v.answer; do != nil {
		do(w)
		return
	}
	_, _ = io.WriteString(w, "done")
}

// A visit is a request under way.
type visit struct {
	rec      *httptest.ResponseRecorder
	leave    context.CancelFunc
	done     chan struct{}
	panicked any // once done is closed
}

func request(t *testing.T, h http.Handler, url string) *visit {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	v := &visit{rec: httptest.NewRecorder(), leave: leave, done: make(chan struct{})}
	method, path, _ := strings.Cut(url, " ")
	r := httptest.NewRequestWithContext(ctx, method, path, nil)
	go func() {
		defer close(v.done)
		defer func() { v.panicked = recover() }()
		h.ServeHTTP(v.rec, r)
	}()
	return v
}

func (v *visit) want(t *testing.T, status int, body string) {
	t.Helper()
	<-v.done
	if v.rec.Code != status || v.rec.Body.String() != body {
		t.Errorf("answer %d %q, want %d %q", v.rec.Code, v.rec.Body, status, body)
	}
}

func (v *visit) wantRefused(t *testing.T) {
	t.Helper()
	v.want(t, http.StatusServiceUnavailable, "Service Unavailable\n")
	wantRetryAfter(t, v.rec.Header())
}

func wantRetryAfter(t *testing.T, h http.Header) {
	t.Helper()
	if s, err := strconv.Atoi(h.Get("Retry-After")); err != nil || s < 1 || s > 3 {
		t.Errorf("Retry-After is %q, want 1 to 3 seconds", h.Get("Retry-After"))
	}
}

// running waits until nothing happens any more, and checks how many requests
// are being handled.
func (v *view) running(t *testing.T, want int) {
	t.Helper()
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.now != want {
		t.Fatalf("%d requests are being handled, want %d", v.now, want)
	}
}

func one(*http.Request) string { return "one" }

func TestOneRequestAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, v := redistest.Bubble(t), newView()
		var visits []*visit
		for range 3 {
			process := oncehttp.Serialize(newLocker(t, r.Client()), one)(v)
			for range 4 {
				visits = append(visits, request(t, process, "GET /stats"))
			}
		}
		for range visits {
			<-v.began
			v.running(t, 1)
			v.answer <- nil
		}
		for _, visit := range visits {
			visit.want(t, http.StatusOK, "done")
		}
	})
}

func TestNames(t *testing.T) {
	long := "/" + strings.Repeat("a", 300)
	for _, test := range []struct {
		name         func(*http.Request) string
		first, other string
		apart        bool
	}{
		{one, "GET /a", "POST /b", false},
		{func(*http.Request) string { return "" }, "GET /a", "POST /b", false},
		{func(r *http.Request) string { return r.URL.RawQuery }, "GET /a?x", "GET /a?y", true},
		{nil, "GET /a", "GET /a", false},
		{nil, "GET /a?x", "GET /a?y", false},
		{nil, "GET /a", "GET /b", true},
		{nil, "GET /a", "POST /a", true},
		{nil, "HEAD /a", "GET /a", false},
		{nil, "GET " + long, "GET " + long, false},
		{nil, "GET " + long, "GET " + long + "b", true},
	} {
		t.Run("", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newView()
				h := oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), test.name)(v)
				first, other := request(t, h, test.first), request(t, h, test.other)
				want := 1
				if test.apart {
					want = 2
				}
				v.running(t, want)
				v.answer <- nil
				v.answer <- nil
				first.want(t, http.StatusOK, "done")
				other.want(t, http.StatusOK, "done")
			})
		})
	}
}

func TestClientThatLeavesGivesUpItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, v := redistest.Bubble(t), newView()
		here, there := oncehttp.Serialize(newLocker(t, r.Client()), one)(v), oncehttp.Serialize(newLocker(t, r.Client()), one)(v)
		first := request(t, here, "GET /first")
		v.running(t, 1)
		second := request(t, there, "GET /second")
		synctest.Wait()
		third := request(t, here, "GET /third")
		synctest.Wait()

		began := time.Now()
		second.leave()
		<-second.done // while the first is still handled
		v.running(t, 1)
		v.answer <- nil
		first.want(t, http.StatusOK, "done")
		v.answer <- nil
		third.want(t, http.StatusOK, "done")
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("the third waited for %v", took)
		}
		for range 2 {
			if r := <-v.began; r.URL.Path == "/second" {
				t.Error("the second was handled")
			}
		}
		second.wantRefused(t) // never an empty 200
	})
}

// A request that waited too long has a client that wants to know.
func TestDeadlineInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView()
		h := oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one)(v)
		hurried := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			h.ServeHTTP(w, r.WithContext(ctx))
		})
		first := request(t, h, "GET /")
		v.running(t, 1)
		request(t, hurried, "GET /").wantRefused(t)
		v.answer <- nil
		first.want(t, http.StatusOK, "done")
	})
}

func TestRequestIsRefusedWhileRedisIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, v := redistest.Bubble(t), newView()
		h := oncehttp.Serialize(newLocker(t, r.Client()), one)(v)
		r.Kill()
		request(t, h, "GET /").wantRefused(t)
		v.running(t, 0)

		r.Restart()
		r.Pause()
		began := time.Now()
		request(t, h, "GET /").wantRefused(t)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("refused after %v", took)
		}
		r.Resume()
	})
}

func TestClosedLockerRefusesLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView()
		lk := newLocker(t, redistest.Bubble(t).Client())
		_ = lk.Close()
		request(t, oncehttp.Serialize(lk, one)(v), "GET /").wantRefused(t)
		v.running(t, 0)
	})
}

func TestLostLeaseEndsTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, v := redistest.Bubble(t), newView()
		visit := request(t, oncehttp.Serialize(newLocker(t, r.Client()), one)(v), "GET /")
		inside := (<-v.began).Context()
		r.Kill()
		began := time.Now()
		<-inside.Done()
		if cause, took := context.Cause(inside), time.Since(began); !errors.Is(cause, fetchonce.ErrLockLost) || took > 5*time.Second {
			t.Errorf("after %v the context ended with %v, want ErrLockLost within the lease", took, cause)
		}
		v.answer <- func(w http.ResponseWriter) { http.Error(w, "too late", http.StatusConflict) }
		visit.want(t, http.StatusConflict, "too late\n") // the handler's own
	})
}

func TestClientThatLeavesEndsTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView()
		visit := request(t, oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one)(v), "GET /")
		inside := (<-v.began).Context()
		visit.leave()
		synctest.Wait()
		if !errors.Is(inside.Err(), context.Canceled) {
			t.Errorf("the context of the handler says %v", inside.Err())
		}
		v.answer <- nil
		visit.want(t, http.StatusOK, "done")
	})
}

func TestPanicReleasesTheLockAndContinues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView()
		h := oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one)(v)
		began := time.Now()
		for _, with := range []any{http.ErrAbortHandler, "a bug"} {
			visit := request(t, h, "GET /")
			v.answer <- func(http.ResponseWriter) { panic(with) }
			<-visit.done
			if visit.panicked != with || visit.rec.Body.Len() != 0 {
				t.Errorf("panic with %v, body %q; want panic with %v", visit.panicked, visit.rec.Body, with)
			}
		}
		v.answer <- nil
		request(t, h, "GET /").want(t, http.StatusOK, "done")
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v: the lock was not given back", took)
		}
	})
}

func TestHandlerReceivesTheResponseWriterUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := httptest.NewRecorder()
		h := oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if w != http.ResponseWriter(rec) {
				t.Errorf("the handler has a %T", w)
			}
			if got := r.PathValue("part"); got != "1" {
				t.Errorf("the path's part is %q, want 1", got)
			}
		}))
		mux := http.NewServeMux()
		mux.Handle("GET /stats/{part}", h)
		mux.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/stats/1", nil))
	})
}

func TestNilIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lk := newLocker(t, redistest.Bubble(t).Client())
		for what, do := range map[string]func(){
			"oncehttp: the Locker is nil":  func() { oncehttp.Serialize(nil, nil) },
			"oncehttp: the handler is nil": func() { oncehttp.Serialize(lk, nil)(nil) },
		} {
			func() {
				defer func() {
					if p := recover(); p != what {
						t.Errorf("panic with %v, want %q", p, what)
					}
				}()
				do()
			}()
		}
	})
}

// A buffer is a log.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serve serves a view over HTTP, as one process.
func serve(t *testing.T, rdb redis.UniversalClient, v http.Handler) (url string, said *buffer) {
	t.Helper()
	server := httptest.NewUnstartedServer(oncehttp.Serialize(newLocker(t, rdb), one)(v))
	said = &buffer{}
	server.Config.ErrorLog = log.New(said, "", 0)
	server.Start()
	t.Cleanup(server.Close)
	return server.URL, said
}

// client has a connection for each request: on one that was used before, an
// aborted request would be sent again.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}

// get is a client over the network.
func get(ctx context.Context, url string) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", err
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	return answer, string(body), err
}

func TestOneRequestAtATimeOverTheNetwork(t *testing.T) {
	r, v := redistest.Server(t), newView()
	here, _ := serve(t, r.Client(), v)
	there, said := serve(t, r.Client(), v)

	var clients sync.WaitGroup
	for i := range 10 {
		clients.Go(func() {
			answer, body, err := get(t.Context(), []string{here, there}[i%2]+"/stats")
			if err != nil || answer.StatusCode != http.StatusOK || body != "done" {
				t.Errorf("%v, %q, %v", answer, body, err)
			}
		})
	}
	for range 10 {
		<-v.began
		time.Sleep(time.Millisecond)
		v.answer <- nil
	}
	clients.Wait()

	// One that leaves the queue, while another is handled.
	ctx, leave := context.WithCancel(t.Context())
	clients.Go(func() { _, _, _ = get(t.Context(), here+"/holder") })
	holder := <-v.began
	clients.Go(func() {
		if _, _, err := get(ctx, there+"/leaves"); !errors.Is(err, context.Canceled) {
			t.Errorf("the one that left got %v", err)
		}
	})
	queue := r.Client()
	await(t, "it is in the queue", func() bool { return queue.ZCount(t.Context(), "test:q:{one}", "(0", "+inf").Val() == 1 })
	leave()
	await(t, "it has left the queue", func() bool { return queue.ZCount(t.Context(), "test:q:{one}", "(0", "+inf").Val() == 0 })
	if holder.Context().Err() != nil {
		t.Error("the holder was disturbed")
	}
	v.answer <- nil

	// One that aborts: the client sees the connection end, and the lock is free.
	v.answer <- func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
	if answer, body, err := get(t.Context(), there+"/aborts"); err == nil {
		t.Errorf("an aborted one got %v, %q", answer, body)
	}
	if r := <-v.began; r.URL.Path != "/aborts" {
		t.Errorf("handled %s", r.URL)
	}
	v.answer <- nil
	if _, body, err := get(t.Context(), there+"/next"); body != "done" || err != nil {
		t.Errorf("after an aborted one: %q, %v", body, err)
	}
	if said.String() != "" {
		t.Errorf("the log says %q", said)
	}
	clients.Wait()

	// Without a Redis: refused, and the log says why.
	r.Kill()
	for range 3 {
		answer, body, err := get(t.Context(), there+"/refused")
		if err != nil || answer.StatusCode != http.StatusServiceUnavailable || strings.Contains(body, "redis") {
			t.Fatalf("without a Redis: %v, %q, %v", answer, body, err)
		}
		wantRetryAfter(t, answer.Header)
	}
	const want = `oncehttp: GET "/refused" was refused: fetchonce: lock "one": `
	if text := said.String(); strings.Count(text, want) < 1 || strings.Count(text, "\n") > 2 {
		t.Errorf("the log says %q, want once a second %q", text, want)
	}
	if v.most != 1 {
		t.Errorf("%d were handled at once", v.most)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain: " + what)
		}
	}
}
