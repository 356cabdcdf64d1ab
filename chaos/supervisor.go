//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/chaos/origin"
	"github.com/fetchonce/fetchonce/internal/pgtest"
	"github.com/fetchonce/fetchonce/oncesql"
)

const seats = 4

// A supervisor has everything that runs, and does it harm.
type supervisor struct {
	profile string
	seed    uint64
	dir     string // of the history and the logs
	only    string // what is in the names of the faults that are dealt

	servers  *servers
	database *pgtest.Server
	dsn      string
	source   *origin.Source
	log      *history.Log
	seats    []*seat

	planned   atomic.Bool          // a failover of ours is under way
	successor atomic.Pointer[node] // and has made this node the master, under Sentinel

	mu   sync.Mutex
	cpu  time.Duration // of the workers that have ended
	rss  int64         // of the largest, in KB
	errs []error       // of ours: then the run is no evidence
}

// open starts everything in a directory for the servers, which may go.
func (s *supervisor) open(dir string) (err error) {
	if s.log, err = history.OpenLog(filepath.Join(s.dir, "history"), "supervisor"); err != nil {
		return err
	}
	postgres := filepath.Join(dir, "postgres")
	if err := os.Mkdir(postgres, 0o755); err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() { // while Redis starts
		s.database, err = pgtest.Run(postgres)
		started <- err
	}()
	servers, serversErr := startServers(s.profile, dir)
	s.servers = servers
	if err := errors.Join(<-started, serversErr); err != nil {
		return err
	}
	if err := s.createTables(); err != nil {
		return err
	}
	addrs := s.servers.place.Addrs
	if s.profile == "sentinel" {
		for _, n := range s.servers.nodes {
			addrs = append(addrs, n.addr)
		}
	}
	for n := range seats {
		at := &seat{number: n}
		if at.proxies, err = newProxies(strconv.Itoa(n), addrs); err != nil {
			return err
		}
		s.seats = append(s.seats, at)
		if err := s.hire(at); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) createTables() (err error) {
	s.dsn = s.database.DSN()
	if s.source, err = origin.Open(s.dsn); err != nil {
		return err
	}
	if err := s.source.CreateTables(); err != nil {
		return err
	}
	created, err := oncesql.New(s.source.DB, oncesql.Options[string]{Dialect: oncesql.Postgres, Table: "created"})
	if err != nil {
		return err
	}
	if err := created.CreateTable(context.Background()); err != nil {
		return err
	}
	for n := range keys {
		if err := s.source.Create(context.Background(), keyName(n)); err != nil {
			return err
		}
		first := history.Event{Key: keyName(n), Version: 1, Writer: "supervisor"}
		for _, first.Op = range []history.Op{history.Committing, history.Committed} {
			s.log.Write(first)
		}
	}
	for n := range lockNames(s.profile) {
		if _, err := s.source.DB.Exec(`INSERT INTO counters (name) VALUES ($1)`, "lock "+strconv.Itoa(n)); err != nil {
			return err
		}
	}
	return nil
}

// hire puts a new worker in a seat.
func (s *supervisor) hire(at *seat) (err error) {
	at.lives++
	at.worker, err = startProcess(job{
		Process: fmt.Sprintf("p%d.%d", at.number, at.lives), Build: s.buildOf(at), Seed: s.seed + uint64(at.number), Redis: s.servers.place,
		Proxies: at.proxies.addr, DSN: s.dsn, Dir: s.dir,
	})
	return err
}

// buildOf returns which build of the program a worker is: where seats are harmed, each life of a
// seat has another one, so two builds work at the same time.
func (s *supervisor) buildOf(at *seat) int {
	if !s.harmsSeats() {
		return 0
	}
	return (at.number + at.lives) % 2
}

// run lets the workers work, in turn in peace and under faults. The last phase is
// a quiet one, unless it is over after a storm.
func (s *supervisor) run(lasts, quiet, storm time.Duration, over func() bool) {
	ctx, cancel := context.WithCancel(context.Background())
	var pulse sync.WaitGroup
	if s.profile == illnode {
		for i := range s.servers.nodes {
			pulse.Go(func() { s.pulseNode(ctx, i) })
		}
	} else {
		pulse.Go(func() { s.pulse(ctx) })
	}
	redisDeck, seatDeck := s.newDeck(0, s.redisFaults()), s.newDeck(1, s.seatFaults())
	// A slow machine takes longer, until each fault was dealt.
	for began := time.Now(); time.Since(began) < lasts || time.Since(began) < 2*lasts && !(redisDeck.dealt() && seatDeck.dealt()); {
		s.phase("quiet")
		time.Sleep(quiet)
		s.phase("storm")
		s.storm(storm, redisDeck, seatDeck)
		if over() {
			quiet = 0
			break
		}
	}
	s.phase("quiet")
	time.Sleep(quiet)
	cancel()
	pulse.Wait()
}

// phases returns how long a quiet phase is, and a storm.
func phases(lasts time.Duration) (quiet, storm time.Duration) {
	return min(lasts*3/20, 5*time.Second), min(lasts*7/20, 10*time.Second)
}

func (s *supervisor) phase(name string) {
	s.log.Write(history.Event{Op: history.Phase, Value: name})
}

// storm deals faults, to each seat and to Redis one after the other. It returns
// when the last one is over.
func (s *supervisor) storm(lasts time.Duration, redisDeck, seatDeck *deck) {
	end := time.Now().Add(lasts)
	var redis, seats sync.WaitGroup
	var over atomic.Bool // what is done to Redis, which may take longer
	redis.Go(func() {
		s.deal(redisDeck, nil, lasts/7, func() bool { return time.Now().After(end) }) // what all feel excuses much
	})
	harmed := s.seats
	if s.only != "" {
		harmed = harmed[:len(harmed)/2] // the others are there to find out
	}
	for _, at := range harmed {
		seats.Go(func() { s.deal(seatDeck, at, 200*time.Millisecond, over.Load) })
	}
	redis.Wait()
	over.Store(true)
	seats.Wait()
	if err := s.servers.well(); err != nil {
		s.fail(err)
	}
}

// deal does one thing after the other.
func (s *supervisor) deal(from *deck, at *seat, pause time.Duration, over func() bool) {
	for !over() {
		if len(from.faults) == 0 {
			time.Sleep(pause)
			continue
		}
		f, rng := from.draw()
		if err := f.do(s, at, rng); err != nil {
			s.fail(fmt.Errorf("%s: %w", f.name, err))
			return
		}
		time.Sleep(rand.N(pause))
	}
}

// fail notes that something of ours went wrong.
func (s *supervisor) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

// A deck deals all its faults before it deals one again.
type deck struct {
	faults []fault

	mu   sync.Mutex
	rng  *rand.Rand
	next []fault
	once bool // all were dealt
}

// dealt reports whether all faults were dealt.
func (d *deck) dealt() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.once || len(d.faults) == 0
}

func (s *supervisor) newDeck(number uint64, faults []fault) *deck {
	faults = slices.DeleteFunc(faults, func(f fault) bool { return !strings.Contains(f.name, s.only) })
	return &deck{faults: faults, rng: rand.New(rand.NewPCG(s.seed, number))}
}

// draw returns the next fault, and the chance that decides how it is done.
func (d *deck) draw() (fault, *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.next) == 0 {
		d.next = append(d.next, d.faults...)
		d.rng.Shuffle(len(d.next), func(i, j int) { d.next[i], d.next[j] = d.next[j], d.next[i] })
	}
	f := d.next[0]
	d.next = d.next[1:]
	d.once = d.once || len(d.next) == 0
	return f, rand.New(rand.NewPCG(d.rng.Uint64(), 2))
}

// rest ends the workers, and writes down what they leave behind.
func (s *supervisor) rest() {
	var all sync.WaitGroup
	for _, at := range s.seats {
		all.Go(func() {
			if err := at.worker.retire(); err != nil {
				s.fail(fmt.Errorf("%s: %w", at.worker.name, err))
			}
			s.count(at.worker)
		})
	}
	all.Wait()
	time.Sleep(rules.Lease) // of those who were killed
	if err := errors.Join(s.inspect(), s.audit(), s.search()); err != nil {
		s.fail(err)
	}
}

// count adds up what a worker has used.
func (s *supervisor) count(p *process) {
	u, ok := p.cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cpu += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	s.rss = max(s.rss, u.Maxrss)
}

// inspect looks at every name in Redis: for leases, and for an end.
func (s *supervisor) inspect() error {
	masters, err := s.servers.masters()
	if err != nil {
		return err
	}
	ctx := context.Background()
	for _, m := range masters {
		names, err := m.rdb.Keys(ctx, "*").Result()
		if err != nil {
			return err
		}
		for _, name := range names {
			left, err := m.rdb.PTTL(ctx, name).Result()
			if err != nil {
				return err
			}
			if left == -1 {
				s.log.Write(history.Event{Op: history.Endless, Value: name})
			}
			held, err := isHeld(ctx, m.rdb, name)
			if err != nil {
				return err
			}
			if held {
				s.log.Write(history.Event{Op: history.Held, Value: name})
			}
		}
	}
	return nil
}

// isHeld reports whether a name is a lease, or a lock with a holder.
func isHeld(ctx context.Context, rdb *redis.Client, name string) (bool, error) {
	switch {
	case strings.Contains(name, ":m:{"):
		return rdb.HExists(ctx, name, "o").Result()
	case !strings.Contains(name, ":l:{"):
		return false, nil
	}
	text, err := rdb.Get(ctx, name).Result()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	now, err := rdb.Time(ctx).Result()
	words := strings.Fields(text) // see lock.lua: 3, and 3 for each holder
	for i := 5; i < len(words); i += 3 {
		at, _, _ := strings.Cut(words[i], "/")
		if end, err := strconv.ParseInt(at, 10, 64); err == nil && end > now.UnixMilli() {
			return true, nil
		}
	}
	return false, err
}

// audit counts what was counted.
func (s *supervisor) audit() error {
	rows, err := s.source.DB.Query(`SELECT name, n, (SELECT count(*) FROM sections WHERE sections.name = counters.name) FROM counters`)
	if err != nil {
		return err
	}
	for rows.Next() {
		e := history.Event{Op: history.Counted}
		if err := rows.Scan(&e.Key, &e.Version, &e.Count); err != nil {
			return err
		}
		s.log.Write(e)
	}
	return errors.Join(rows.Err(), rows.Close())
}

// search looks for secrets in what the workers have logged and said.
func (s *supervisor) search() error {
	for _, pattern := range []string{"log-*", "stderr-*", "history"} {
		files, err := filepath.Glob(filepath.Join(s.dir, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if strings.Contains(string(text), canary) {
				s.log.Write(history.Event{Op: history.Told, Value: filepath.Base(file)})
			}
		}
	}
	return nil
}

// close ends everything.
func (s *supervisor) close() error {
	for _, at := range s.seats {
		if at.worker != nil && at.worker.cmd.ProcessState == nil {
			at.worker.signal(syscall.SIGKILL)
		}
		at.proxies.stop()
	}
	if s.source != nil {
		_ = s.source.DB.Close()
	}
	if s.servers != nil {
		s.servers.stop()
		s.servers.keepLogs(s.dir)
	}
	if s.database != nil {
		return s.database.Stop()
	}
	return nil
}
