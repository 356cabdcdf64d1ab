package oncehttp_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/oncehttp"
)

// A wire is the listener of an HTTP server whose connections are in memory, so that the
// server works in a synctest bubble.
type wire struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (w *wire) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

func (w *wire) Close() error   { close(w.closed); return nil }
func (w *wire) Addr() net.Addr { return &net.TCPAddr{} }

// wired serves h in a bubble.
func wired(t *testing.T, h http.Handler, change ...func(*http.Server)) *wire {
	t.Helper()
	w := &wire{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	for _, f := range change {
		f(server)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(w)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return w
}

// dial connects a client, and sends the beginning of a request.
func (w *wire) dial(t *testing.T, begin string) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	w.conns <- server
	t.Cleanup(func() { _ = client.Close() })
	send(t, client, begin)
	return client
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Error(err)
	}
}

// answer reads the answer to a client. It waits for an hour at most.
func answer(t *testing.T, c net.Conn) (status int, body string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Hour))
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func wantAnswer(t *testing.T, c net.Conn, status int, body string) {
	t.Helper()
	if gotStatus, got := answer(t, c); gotStatus != status || got != body {
		t.Errorf("answer %d %.100q, want %d %.100q", gotStatus, got, status, body)
	}
}

const getIt = "GET /it HTTP/1.1\r\nHost: h\r\n\r\n"

func post(path string, length int, begin string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", path, length, begin)
}

// reader is a handler that answers with what it has read.
var reader = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = w.Write(b)
})

func TestSlowBodyHoldsNoLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := wired(t, oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one)(reader))
		slow := w.dial(t, post("/slow", 10, "ab"))
		synctest.Wait()
		began := time.Now()
		wantAnswer(t, w.dial(t, getIt), http.StatusOK, "")
		if took := time.Since(began); took > time.Second {
			t.Errorf("a request waited %v for a body of another one", took)
		}
		send(t, slow, "cdefghij")
		wantAnswer(t, slow, http.StatusOK, "abcdefghij")
	})
}

func TestSlowBodyOverLoopback(t *testing.T) {
	url, _ := serve(t, redistest.Server(t).Client(), reader)
	slow, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	send(t, slow, post("/slow", 10, "ab"))
	for range 5 {
		if answer, _, err := get(t.Context(), url+"/it"); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", answer, err)
		}
	}
	send(t, slow, "cdefghij")
	wantAnswer(t, slow, http.StatusOK, "abcdefghij")
}

// The client has sent all of its body, and leaves while its request is in the queue.
func TestClientWithABodyThatLeavesGivesUpItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView()
		w := wired(t, oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one)(v))
		holder := w.dial(t, getIt)
		v.running(t, 1)
		leaves := w.dial(t, post("/leaves", 10, "abcdefghij"))
		synctest.Wait()
		_ = leaves.Close()
		synctest.Wait()
		next := w.dial(t, getIt)
		v.answer <- nil
		v.answer <- nil
		wantAnswer(t, holder, http.StatusOK, "done")
		wantAnswer(t, next, http.StatusOK, "done")
		synctest.Wait()
		for len(v.began) > 0 {
			if r := <-v.began; r.URL.Path == "/leaves" {
				t.Error("the request of the client that left was handled")
			}
		}
	})
}

// A large body is read under the lock, for a limited time, however slowly it arrives.
func TestSlowLargeBodyEndsWithBodyTimeout(t *testing.T) {
	const large = 100_000
	for name, test := range map[string]struct {
		opts   []oncehttp.Option
		change func(*http.Server)
		pace   time.Duration // between two bytes; 0: none comes
		want   time.Duration // until the body ends
	}{
		"silent":      {want: 30 * time.Second},
		"trickling":   {pace: 7 * time.Second, want: 30 * time.Second},
		"BodyTimeout": {opts: []oncehttp.Option{oncehttp.BodyTimeout(time.Second)}, want: time.Second},
		"ReadTimeout": {change: func(s *http.Server) { s.ReadTimeout = time.Minute }, want: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var took time.Duration
				var err error
				h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet {
						return
					}
					began := time.Now()
					_, err = io.Copy(io.Discard, r.Body)
					took = time.Since(began)
				})
				var change []func(*http.Server)
				if test.change != nil {
					change = append(change, test.change)
				}
				w := wired(t, oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one, test.opts...)(h), change...)
				slow := w.dial(t, post("/slow", large, strings.Repeat("a", large-1000)))
				stop := trickle(slow, test.pace)
				synctest.Wait()
				wantAnswer(t, w.dial(t, getIt), http.StatusOK, "")
				stop()
				if !errors.Is(err, os.ErrDeadlineExceeded) || took != test.want {
					t.Errorf("the body ended with %v after %v, want os.ErrDeadlineExceeded after %v", err, took, test.want)
				}
			})
		})
	}
}

// trickle sends a byte each pace.
func trickle(c net.Conn, pace time.Duration) (stop func()) {
	ended := make(chan struct{})
	if pace > 0 {
		go func() {
			for {
				select {
				case <-time.After(pace):
					_, _ = c.Write([]byte{'a'})
				case <-ended:
					return
				}
			}
		}()
	}
	return func() {
		_ = c.Close()
		close(ended)
	}
}

// The time in which the handler does not read is the handler's own.
func TestPausesOfTheHandlerDoNotEndTheBody(t *testing.T) {
	const large = 100_000
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b := make([]byte, large)
			for _, part := range [][]byte{b[:70_000], b[70_000:]} {
				if _, err := io.ReadFull(r.Body, part); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Hour)
			}
			if r.Context().Err() != nil {
				t.Error("the context of the request has ended")
			}
			_, _ = w.Write(b)
		})
		w := wired(t, oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one)(h))
		text := strings.Repeat("0123456789", large/10)
		c := w.dial(t, post("/", large, text[:65_000]))
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = io.WriteString(c, text[65_000:])
		}()
		<-sent
		time.Sleep(90 * time.Minute)
		wantAnswer(t, c, http.StatusOK, text)
	})
}

// Without a limit a handler waits until its body has arrived.
func TestBodyTimeoutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := wired(t, oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one, oncehttp.BodyTimeout(fetchonce.Off))(reader))
		c := w.dial(t, post("/", 70_001, strings.Repeat("a", 70_000)))
		time.Sleep(50 * time.Minute)
		send(t, c, "a")
		wantAnswer(t, c, http.StatusOK, strings.Repeat("a", 70_001))
	})
}

// The handler receives an error of the body, even one that occurs while the body is read
// ahead.
func TestHandlerReceivesTheErrorOfTheBody(t *testing.T) {
	for _, length := range []int{20, 70_000} {
		synctest.Test(t, func(t *testing.T) {
			h := oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), one)(http.HandlerFunc(
				func(w http.ResponseWriter, r *http.Request) {
					b, err := io.ReadAll(r.Body)
					if _, ok := errors.AsType[*http.MaxBytesError](err); !ok || len(b) != length-1 {
						t.Errorf("the handler read %d bytes and %v, want %d and a MaxBytesError", len(b), err, length-1)
					}
					w.WriteHeader(http.StatusRequestEntityTooLarge)
				}))
			w := wired(t, http.MaxBytesHandler(h, int64(length-1)))
			wantAnswer(t, w.dial(t, post("/", length, strings.Repeat("a", length))), http.StatusRequestEntityTooLarge, "")
		})
	}
}
