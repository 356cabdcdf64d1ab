//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/chaos/history"
)

// The profiles standalone, sentinel and cluster harm everything at once. These two do
// one thing, and excuse little.
const (
	// illnode is a cluster of three masters without replicas. One of them hangs at a
	// time. That excuses nothing that concerns the keys of the others.
	illnode = "illnode"

	// full is one server. It reaches maxmemory for several leases at a time, and evicts
	// nothing. That excuses only what needs new memory.
	full = "full"
)

// harmsSeats reports whether workers and their networks are harmed.
func (s *supervisor) harmsSeats() bool { return s.profile != illnode && s.profile != full }

// rules returns what is promised in this profile.
func (s *supervisor) rules() history.Rules {
	r := rules
	if s.profile == illnode {
		r.Nodes = clusterMasters
	}
	return r
}

// lockNames returns how many locks there are. In a full Redis no waiter can join a queue,
// so only what is held and queued when it becomes full counts.
func lockNames(profile string) int {
	if profile == full {
		return 12
	}
	return 4
}

// A mix says what the workers do. Of 1000 calls those below updates are Updates, then
// follow Deletes and so on; the rest are Gets.
type mix struct{ updates, deletes, locks, creates int }

// mixOf returns the mix of a profile. In full, more is loaded and locked at any moment.
func mixOf(profile string) mix {
	if profile == full {
		return mix{15, 50, 180, 200}
	}
	return mix{15, 30, 70, 90}
}

// onRedisDown returns the policy of the workers. With FailClosed a caller receives the
// failure of Redis that FailOpen hides.
func (w *worker) onRedisDown() fetchonce.Policy {
	if w.Redis.Profile == illnode {
		return fetchonce.FailClosed
	}
	return fetchonce.FailOpen
}

// nodeHangs are the hangs of each node of the cluster.
func (s *supervisor) nodeHangs() (faults []fault) {
	for i := range clusterMasters {
		faults = append(faults, fault{fmt.Sprintf("hang of node %d", i+1), func(s *supervisor, _ *seat, _ *rand.Rand) error {
			n, began := s.servers.nodes[i], history.Now()
			n.signal(syscall.SIGSTOP)
			time.Sleep(2*redisTimeout + rand.N(4*redisTimeout))
			n.signal(syscall.SIGCONT)
			err := s.servers.well()
			s.log.Write(history.Event{Op: history.Hit, Fault: history.NodeHang, Node: i + 1, Began: began, Process: history.Everyone})
			return err
		}})
	}
	return faults
}

// pulseNode writes down when one node did not answer in time, be it because of the node
// or because this process did not run.
func (s *supervisor) pulseNode(ctx context.Context, i int) {
	const beat = 20 * time.Millisecond
	for last := history.Now(); ctx.Err() == nil; {
		time.Sleep(beat)
		_, _ = s.servers.nodes[i].isMaster(ctx)
		now := history.Now()
		if now.Sub(last) > slow+beat {
			s.log.Write(history.Event{Op: history.Hit, Fault: history.RedisSlow, Node: i + 1, Process: history.Everyone, Began: last})
		}
		last = now
	}
}

// fill makes Redis full for several leases.
func (s *supervisor) fill(_ *seat, rng *rand.Rand) error {
	return s.hit(history.Full, rng, func(master *node) error {
		if err := master.do("CONFIG", "SET", "maxmemory", "1"); err != nil {
			return err
		}
		time.Sleep(3*rules.Lease + rand.N(3*rules.Lease))
		return master.do("CONFIG", "SET", "maxmemory", "0")
	})
}

// triedEnough returns an error if a run tells nothing of what its profile is there for.
func (s *supervisor) triedEnough(tried map[history.Trial]int, lasts time.Duration) error {
	floors := map[string]map[history.Trial]float64{ // in 30 s
		illnode: {history.GetBeside: 300, history.FetchBeside: 15, history.DeleteBeside: 10, history.LockBeside: 15},
		full: {
			history.LockKept: 3, history.LeaseKept: 3, history.LockPassed: 3, history.FullGet: 300, history.FullDelete: 15,
		},
	}
	var errs []error
	for trial, in30s := range floors[s.profile] {
		if least := int(in30s * lasts.Seconds() / 30); tried[trial] < least {
			errs = append(errs, fmt.Errorf("%d %s, fewer than %d, tell nothing", tried[trial], trial, least))
		}
	}
	return errors.Join(errs...)
}
