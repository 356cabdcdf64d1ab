//go:build linux

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fetchonce/fetchonce/chaos/history"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// A fault harms the worker of a seat or, if the seat is nil, Redis.
type fault struct {
	name string
	do   func(s *supervisor, at *seat, rng *rand.Rand) error
}

// seatFaults returns the faults of a worker and of its connections to Redis.
func (s *supervisor) seatFaults() []fault {
	if !s.harmsSeats() {
		return nil
	}
	faults := []fault{
		{"kill", func(s *supervisor, at *seat, _ *rand.Rand) error {
			at.worker.signal(syscall.SIGKILL)
			return s.replace(at)
		}},
		{"stop", func(s *supervisor, at *seat, rng *rand.Rand) error {
			began := history.Now()
			at.worker.signal(syscall.SIGSTOP)
			return s.resume(at, began, rng)
		}},
		toxic(history.Reset, "reset_peer", "downstream", `"timeout": 0`),
		toxic(history.Delay, "latency", "upstream", `"latency": 100, "jitter": 50`),
		toxic(history.Delay, "latency", "downstream", `"latency": 100, "jitter": 50`),
		toxic(history.BlackHole, "timeout", "upstream", `"timeout": 0`),
		toxic(history.BlackHole, "timeout", "downstream", `"timeout": 0`),
		toxic(history.LostReply, "limit_data", "downstream", `"bytes": 0`),
	}
	faults = append(faults, fault{"restart", func(s *supervisor, at *seat, _ *rand.Rand) error {
		if err := at.worker.stop(); err != nil {
			return err
		}
		s.count(at.worker)
		return s.startWorker(at)
	}})
	for _, at := range allPoints {
		faults = append(faults, fault{"kill at " + string(at), killAt(at)}, fault{"stop at " + string(at), stopAt(at)})
	}
	for _, f := range []history.Fault{history.FetchError, history.FetchPanic, history.FetchGoexit, history.FetchHang} {
		faults = append(faults, fault{string(f), func(s *supervisor, at *seat, _ *rand.Rand) error {
			at.worker.send("fetch " + string(f))
			s.log.Write(history.Event{Op: history.Hit, Process: at.worker.name, Fault: f, Began: history.Now()})
			return nil
		}})
	}
	return faults
}

// toxic is a fault of the network.
func toxic(kind history.Fault, name, stream, attributes string) fault {
	return fault{string(kind) + " " + stream, func(s *supervisor, at *seat, rng *rand.Rand) error {
		began := history.Now()
		if err := at.proxies.add(name, stream, attributes); err != nil {
			return err
		}
		lasts := 200*time.Millisecond + rand.N(2*rules.Lease)
		if rng.IntN(2) == 0 {
			lasts /= 4
		}
		time.Sleep(lasts)
		at.proxies.remove()
		s.log.Write(history.Event{Op: history.Hit, Process: at.worker.name, Fault: kind, Began: began})
		return nil
	}}
}

// arming is how long a worker has to reach a point.
const arming = 2 * time.Second

// reaches orders a worker to do something at a point. It reports whether the worker reached the point
// and did so.
func (p *process) reaches(at point, do string) bool {
	p.send("arm " + do + " " + string(at))
	if p.nextLine(arming) != "" {
		return true
	}
	p.send("disarm")
	return p.nextLine(patience) != disarmed // it may have reached the point meanwhile
}

func killAt(p point) func(*supervisor, *seat, *rand.Rand) error {
	return func(s *supervisor, at *seat, _ *rand.Rand) error {
		if !at.worker.reaches(p, "kill") {
			at.worker.signal(syscall.SIGKILL) // wherever it is
		}
		return s.replace(at)
	}
}

func stopAt(p point) func(*supervisor, *seat, *rand.Rand) error {
	return func(s *supervisor, at *seat, rng *rand.Rand) error {
		if !at.worker.reaches(p, "stop") {
			at.worker.signal(syscall.SIGSTOP)
		}
		// It may have stopped a little earlier; it records that itself when it continues.
		return s.resume(at, history.Now(), rng)
	}
}

// resume lets a stopped worker continue, sometimes only after its leases have ended.
func (s *supervisor) resume(at *seat, began history.Time, rng *rand.Rand) error {
	err := until(at.worker.name+" has stopped", func() error {
		if !isStopped(at.worker.cmd.Process.Pid) {
			return errors.New("it runs")
		}
		return nil
	})
	if err != nil {
		return err
	}
	lasts := rules.Lease + rand.N([]time.Duration{rules.Lease / 5, rules.Lease}[rng.IntN(2)])
	if rng.IntN(4) == 0 {
		lasts = rand.N(rules.Lease / 2)
	}
	time.Sleep(lasts)
	at.worker.signal(syscall.SIGCONT)
	s.log.Write(history.Event{Op: history.Hit, Process: at.worker.name, Fault: history.Stopped, Began: began})
	return nil
}

// replace records the death of a killed worker and starts another in its seat.
func (s *supervisor) replace(at *seat) error {
	if err := at.worker.awaitKilled(); err != nil {
		return err
	}
	s.log.Write(history.Event{Process: at.worker.name, Op: history.Died})
	commits, err := s.source.Left(context.Background(), at.worker.name)
	if err != nil {
		return err
	}
	for _, c := range commits {
		s.log.Write(c)
	}
	s.count(at.worker)
	return s.startWorker(at)
}

// redisFaults returns the faults of Redis itself.
func (s *supervisor) redisFaults() []fault {
	switch s.profile {
	case illnode:
		return s.nodeHangs()
	case full:
		return []fault{{"full", (*supervisor).fill}}
	}
	faults := []fault{
		{"redis stop", (*supervisor).stopRedis},
		{"script flush", (*supervisor).flushScripts},
		{"client kill", (*supervisor).killClients},
		{"out of memory", (*supervisor).exhaust},
		{"del of a lease", (*supervisor).delLease},
		{"del of a lock", (*supervisor).delLock},
	}
	switch s.profile {
	case "standalone":
		faults = append(faults, fault{"redis kill", (*supervisor).killRedis}, fault{"redis stop for long", (*supervisor).stopRedisForLong})
	case "cluster":
		faults = append(faults, fault{"slot move", (*supervisor).moveSlot})
		fallthrough
	case "sentinel":
		faults = append(faults,
			fault{"failover", func(s *supervisor, _ *seat, rng *rand.Rand) error { return s.failOver(history.Failover, rng) }},
			fault{"failover of a stopped master", func(s *supervisor, _ *seat, rng *rand.Rand) error { return s.failOver(history.StopOver, rng) }})
	}
	return faults
}

// hit does something to a master and records that it affected all processes.
func (s *supervisor) hit(kind history.Fault, rng *rand.Rand, do func(master *node) error) error {
	masters, err := s.servers.masters()
	if err != nil {
		return err
	}
	began := history.Now()
	err = do(masters[rng.IntN(len(masters))])
	s.log.Write(history.Event{Op: history.Hit, Fault: kind, Began: began, Process: history.Everyone})
	return err
}

func (s *supervisor) stopRedis(_ *seat, rng *rand.Rand) error {
	return s.hit(history.RedisStop, rng, func(master *node) error {
		master.signal(syscall.SIGSTOP)
		time.Sleep(200*time.Millisecond + rand.N(500*time.Millisecond))
		master.signal(syscall.SIGCONT)
		return nil
	})
}

// stopRedisForLong stops a master until the breakers of all workers have opened and probes have
// failed.
func (s *supervisor) stopRedisForLong(_ *seat, rng *rand.Rand) error {
	return s.hit(history.RedisStop, rng, func(master *node) error {
		master.signal(syscall.SIGSTOP)
		time.Sleep(4 * redisTimeout)
		master.signal(syscall.SIGCONT)
		return nil
	})
}

func (s *supervisor) killRedis(_ *seat, rng *rand.Rand) error {
	return s.hit(history.RedisKill, rng, func(master *node) error {
		master.kill()
		time.Sleep(rand.N(300 * time.Millisecond))
		return master.start()
	})
}

func (s *supervisor) failOver(kind history.Fault, rng *rand.Rand) error {
	masters, err := s.servers.masters()
	if err != nil {
		return err
	}
	s.successor.Store(nil)
	s.planned.Store(true)
	defer s.planned.Store(false)
	began := history.Now()
	return s.servers.failOver(masters[rng.IntN(len(masters))], kind == history.StopOver, func(now []*node) {
		if s.profile == "sentinel" {
			s.successor.Store(now[0])
		}
	}, func() {
		s.log.Write(history.Event{Op: history.Hit, Fault: kind, Began: began, Process: history.Everyone})
	})
}

// flushScripts flushes the scripts of masters five times.
func (s *supervisor) flushScripts(_ *seat, rng *rand.Rand) error {
	for range 5 {
		if err := s.hit(history.ScriptFlush, rng, func(master *node) error { return master.do("SCRIPT", "FLUSH") }); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

func (s *supervisor) killClients(_ *seat, rng *rand.Rand) error {
	return s.hit(history.ClientKill, rng, func(master *node) error {
		kind := []string{"normal", "pubsub"}[rng.IntN(2)]
		return master.do("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
	})
}

func (s *supervisor) exhaust(_ *seat, rng *rand.Rand) error {
	return s.hit(history.OutOfMemory, rng, func(master *node) error {
		if err := master.do("CONFIG", "SET", "maxmemory", "1"); err != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond)
		return master.do("CONFIG", "SET", "maxmemory", "0")
	})
}

// delLease deletes the lease of a key that is being fetched.
func (s *supervisor) delLease(_ *seat, rng *rand.Rand) error {
	ns := protocol.NewNamespace(prefix, "")
	return s.del(history.DelLease, rng, func(n int) (key, name string) {
		key = keyName(n % keys)
		return key, strings.Replace(ns.Key(key).Value, ":v:", ":m:", 1)
	})
}

// delLock deletes a lock.
func (s *supervisor) delLock(_ *seat, rng *rand.Rand) error {
	return s.del(history.DelLock, rng, func(n int) (key, name string) {
		key = "lock " + strconv.Itoa(n%lockNames(s.profile))
		return key, prefix + ":l:{" + key + "}"
	})
}

// del deletes random keys until one of them existed.
func (s *supervisor) del(kind history.Fault, rng *rand.Rand, what func(n int) (key, name string)) error {
	for end := time.Now().Add(arming); time.Now().Before(end); time.Sleep(time.Millisecond) {
		key, name := what(rng.IntN(1000))
		began := history.Now()
		deleted, err := s.servers.all.Del(context.Background(), name).Result()
		if err != nil || deleted > 0 {
			s.log.Write(history.Event{Op: history.Hit, Fault: kind, Key: key, Process: history.Everyone, Began: began})
			return nil //nolint:nilerr // the key may have been deleted
		}
	}
	return nil
}

func (s *supervisor) moveSlot(_ *seat, rng *rand.Rand) error {
	for end := time.Now().Add(arming); time.Now().Before(end); time.Sleep(time.Millisecond) {
		began := history.Now()
		key := keyName(rng.IntN(keys))
		err := s.servers.moveSlot(context.Background(), protocol.NewNamespace(prefix, "").Key(key).Value)
		if !errors.Is(err, errEmpty) {
			s.log.Write(history.Event{Op: history.Hit, Fault: history.SlotMove, Key: key, Process: history.Everyone, Began: began})
			return err
		}
	}
	return nil
}
