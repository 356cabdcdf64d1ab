package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// A database is a client of the database, which makes the calculations.
type database struct{ url string }

func (d database) calculate(ctx context.Context, part string) (a answer, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+"/"+part, nil)
	if err != nil {
		return a, err
	}
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return a, err
	}
	defer func() { _ = reply.Body.Close() }()
	if reply.StatusCode != http.StatusOK {
		return a, fmt.Errorf("the database answered %s", reply.Status)
	}
	return a, json.NewDecoder(reply.Body).Decode(&a)
}

// A meter stands for the database. It waits instead of calculating, and counts.
type meter struct {
	delay  time.Duration
	server *http.Server
	url    string

	mu             sync.Mutex
	now, most, all int // calculations: running, most at once, in all
}

func startMeter(delay time.Duration) (*meter, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m := &meter{delay: delay, url: "http://" + listener.Addr().String()}
	m.server = &http.Server{Handler: m, ReadHeaderTimeout: harness.Patience}
	go func() { _ = m.server.Serve(listener) }() // ends with stop
	return m, nil
}

func (m *meter) stop() { _ = m.server.Close() }

func (m *meter) begin() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all++
	m.now++
	m.most = max(m.most, m.now)
	return m.now
}

func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now--
}

// counts returns how many calculations there were, and how many at most at once.
func (m *meter) counts() (all, most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all, m.most
}

func (m *meter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	part := r.URL.Path[1:]
	now := m.begin()
	timer := time.NewTimer(m.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
	m.end() // before the response, after which the next calculation may begin
	_ = json.NewEncoder(w).Encode(answer{Part: part, Value: 42 * len(part), AtOnce: now})
}
