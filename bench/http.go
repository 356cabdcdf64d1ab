package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// overHTTP measures how much a lock around a handler slows requests down: requests for
// different keys, and requests for the same key.
var overHTTP = &run.Workload{
	Name:  "http",
	About: "A handler that answers Ok under a lock: a key for each request, or the same for all. The load comes from a second process.",
	Full:  run.Times(run.Grid("connections", 10, 64), "key", uniqueKey, sameKey),
	Short: run.Times(run.Grid("connections", 10), "key", uniqueKey, sameKey),
	Peers: func(p run.Params) []string { return append([]string{peer.NoLock.Name}, lockerNames(p)...) },

	Processes: 2,
	Run: func(ctx context.Context, w *run.Worker) error {
		if w.Index == 0 {
			return serveOk(ctx, w)
		}
		return loadOk(ctx, w)
	},
	Columns: []run.Column{
		{Figure: "ops_per_s", Title: "requests/s"},
		run.P50,
		run.P99,
		run.Max,
		run.Commands,
		run.Reads,
		{Figure: "client_cpu_us_per_op", Title: "CPU µs/request of handler and load", Less: true},
		run.RedisCPU,
		{Figure: "errors", Title: "not 2xx", Less: true},
	},
	Base: peer.NoLock.Name,
}

const (
	uniqueKey = "unique"
	sameKey   = "same"
)

// serveOk is the first process. It serves the handler.
func serveOk(ctx context.Context, w *run.Worker) error {
	lock, err := openLock(ctx, w)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: okHandler(lock)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with Close

	if _, err := w.Meet(listener.Addr().String()); err != nil {
		return err
	}
	if err := errors.Join(w.Begin(), w.End()); err != nil { // the load runs between these
		return err
	}
	err = server.Close()
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return errors.Join(err, lock.Close())
}

// okHandler locks the path of a request.
func okHandler(lock peer.Lock) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := lock.Do(r.Context(), r.URL.Path, func(context.Context) error {
			_, err := io.WriteString(w, "Ok\n")
			return err
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
}

// loadOk is the second process. It keeps connections open, each with one request at a
// time. It writes requests itself, because http.Client would use more CPU than the
// handler.
func loadOk(ctx context.Context, w *run.Worker) error {
	notes, err := w.Meet("")
	if err != nil {
		return err
	}
	connections := make([]*connection, w.Params.Int("connections"))
	for i := range connections {
		if connections[i], err = connect(ctx, notes[0]); err != nil {
			return err
		}
	}
	unique := w.Params["key"] == uniqueKey
	err = w.Loop(ctx, run.Loop{Goroutines: len(connections)}, func(_ context.Context, i int) error {
		c := connections[i]
		c.asked++
		if unique {
			return c.get(fmt.Sprintf("/%d/%d", i, c.asked))
		}
		return c.get("/same")
	})
	for _, c := range connections {
		_ = c.conn.Close()
	}
	return err
}

// A connection is a client connection to the handler.
type connection struct {
	conn  net.Conn
	in    *bufio.Reader
	asked int
}

func connect(ctx context.Context, addr string) (*connection, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	return &connection{conn: conn, in: bufio.NewReader(conn)}, err
}

// get sends a request for path and reads the response.
func (c *connection) get(path string) error {
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", path); err != nil {
		return err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return errors.Join(err, answer.Body.Close())
}
