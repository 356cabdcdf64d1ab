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

// A supervisor starts the servers and the workers, and injects faults.
type supervisor struct {
	profile string
	seed    uint64
	dir     string // of the history and the logs
	only    string // part of the names of the faults to inject

	servers  *servers
	database *pgtest.Server
	dsn      string
	source   *origin.Source
	log      *history.Log
	seats    []*seat

	planned   atomic.Bool          // whether a failover of the supervisor runs
	successor atomic.Pointer[node] // the master after it, with Sentinels

	mu   sync.Mutex
	cpu  time.Duration // of the workers that have ended
	rss  int64         // of the largest worker, in KB
	errs []error       // failures of the supervisor, with which the run proves nothing
}

// open starts the servers, with dir as their directory, and the workers.
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
		if err := s.startWorker(at); err != nil {
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

// startWorker starts a new worker in a seat.
func (s *supervisor) startWorker(at *seat) (err error) {
	at.lives++
	at.worker, err = startProcess(job{
		Process: fmt.Sprintf("p%d.%d", at.number, at.lives), Build: s.buildOf(at), Seed: s.seed + uint64(at.number), Redis: s.servers.place,
		Proxies: at.proxies.addr, DSN: s.dsn, Dir: s.dir,
	})
	return err
}

// buildOf returns the build of a worker. If workers have faults, each new worker of a seat has another
// build than the one before, so two builds work at the same time.
func (s *supervisor) buildOf(at *seat) int {
	if !s.harmsSeats() {
		return 0
	}
	return (at.number + at.lives) % 2
}

// run alternates quiet phases and phases of faults until the time is over. It ends with a quiet phase,
// unless over reports true after a phase of faults.
func (s *supervisor) run(lasts, quiet, faults time.Duration, over func() bool) {
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	if s.profile == illnode {
		for i := range s.servers.nodes {
			watching.Go(func() { s.watchNode(ctx, i) })
		}
	} else {
		watching.Go(func() { s.watchRedis(ctx) })
	}
	ofRedis, ofSeats := s.newSchedule(0, s.redisFaults()), s.newSchedule(1, s.seatFaults())
	// On a slow machine the run takes longer, until each fault was injected.
	for began := time.Now(); time.Since(began) < lasts || time.Since(began) < 2*lasts && !(ofRedis.complete() && ofSeats.complete()); {
		s.phase("quiet")
		time.Sleep(quiet)
		s.phase("faults")
		s.injectFaults(faults, ofRedis, ofSeats)
		if over() {
			quiet = 0
			break
		}
	}
	s.phase("quiet")
	time.Sleep(quiet)
	cancel()
	watching.Wait()
}

// phases returns the durations of a quiet phase and of a phase of faults.
func phases(lasts time.Duration) (quiet, faults time.Duration) {
	return min(lasts*3/20, 5*time.Second), min(lasts*7/20, 10*time.Second)
}

func (s *supervisor) phase(name string) {
	s.log.Write(history.Event{Op: history.Phase, Value: name})
}

// injectFaults injects faults, one after the other in each seat and in Redis. It returns when the last
// one is over.
func (s *supervisor) injectFaults(lasts time.Duration, ofRedis, ofSeats *schedule) {
	end := time.Now().Add(lasts)
	var redis, seats sync.WaitGroup
	var over atomic.Bool // whether the faults of Redis are over
	redis.Go(func() {
		s.inject(ofRedis, nil, lasts/7, func() bool { return time.Now().After(end) }) // with long pauses: it excuses much
	})
	harmed := s.seats
	if s.only != "" {
		harmed = harmed[:len(harmed)/2] // the others must notice the violation
	}
	for _, at := range harmed {
		seats.Go(func() { s.inject(ofSeats, at, 200*time.Millisecond, over.Load) })
	}
	redis.Wait()
	over.Store(true)
	seats.Wait()
	if err := s.servers.awaitHealthy(); err != nil {
		s.fail(err)
	}
}

// inject injects one fault after the other.
func (s *supervisor) inject(from *schedule, at *seat, pause time.Duration, over func() bool) {
	for !over() {
		if len(from.faults) == 0 {
			time.Sleep(pause)
			continue
		}
		f, rng := from.nextFault()
		if err := f.do(s, at, rng); err != nil {
			s.fail(fmt.Errorf("%s: %w", f.name, err))
			return
		}
		time.Sleep(rand.N(pause))
	}
}

// fail records a failure of the supervisor.
func (s *supervisor) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

// A schedule orders faults at random. Each fault comes once before any comes again.
type schedule struct {
	faults []fault

	mu   sync.Mutex
	rng  *rand.Rand
	next []fault
	once bool // each fault has come once
}

// complete reports whether each fault has come once.
func (d *schedule) complete() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.once || len(d.faults) == 0
}

func (s *supervisor) newSchedule(number uint64, faults []fault) *schedule {
	faults = slices.DeleteFunc(faults, func(f fault) bool { return !strings.Contains(f.name, s.only) })
	return &schedule{faults: faults, rng: rand.New(rand.NewPCG(s.seed, number))}
}

// nextFault returns the next fault and its random numbers.
func (d *schedule) nextFault() (fault, *rand.Rand) {
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

// finish ends the workers and records what they leave behind.
func (s *supervisor) finish() {
	var all sync.WaitGroup
	for _, at := range s.seats {
		all.Go(func() {
			if err := at.worker.stop(); err != nil {
				s.fail(fmt.Errorf("%s: %w", at.worker.name, err))
			}
			s.count(at.worker)
		})
	}
	all.Wait()
	time.Sleep(rules.Lease) // until the leases of killed workers have ended
	if err := errors.Join(s.inspect(), s.audit(), s.search()); err != nil {
		s.fail(err)
	}
}

// count adds the CPU time and memory of a worker.
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

// inspect records the leases in Redis and the keys without a TTL.
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

// isHeld reports whether a key is a lease or a lock with a holder.
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

// audit records the counters and the rows of their increments.
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

// search looks for secrets in the logs, the error outputs and the history.
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
				s.log.Write(history.Event{Op: history.Leaked, Value: filepath.Base(file)})
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
