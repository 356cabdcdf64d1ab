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

// The profiles standalone, sentinel and cluster have all faults at once. These two have one kind each
// and excuse little.
const (
	// illnode is a cluster of three masters without replicas. One of them hangs at a
	// time. That excuses nothing for keys of the others.
	illnode = "illnode"

	// full is one server that reaches maxmemory for several leases at a time and evicts
	// nothing. That excuses only what needs new memory.
	full = "full"
)

// harmsSeats reports whether workers and their connections have faults.
func (s *supervisor) harmsSeats() bool { return s.profile != illnode && s.profile != full }

// rules returns the rules of this profile.
func (s *supervisor) rules() history.Rules {
	r := rules
	if s.profile == illnode {
		r.Nodes = clusterMasters
	}
	return r
}

// lockNames returns how many locks there are. In a full Redis no waiter can join a queue, so there are
// more locks, to have many held and queued when it becomes full.
func lockNames(profile string) int {
	if profile == full {
		return 12
	}
	return 4
}

// A mix is the share of each call, as limits of a random number below 1000: Updates are below updates,
// Deletes below deletes and so on. The rest are Gets.
type mix struct{ updates, deletes, locks, creates int }

// mixOf returns the mix of a profile. In full, workers load and lock more.
func mixOf(profile string) mix {
	if profile == full {
		return mix{15, 50, 180, 200}
	}
	return mix{15, 30, 70, 90}
}

// onRedisDown returns the policy of the workers. FailClosed returns the failures of Redis that FailOpen
// hides.
func (w *worker) onRedisDown() fetchonce.Policy {
	if w.Redis.Profile == illnode {
		return fetchonce.FailClosed
	}
	return fetchonce.FailOpen
}

// nodeHangs returns a fault for each node of the cluster, which makes it hang.
func (s *supervisor) nodeHangs() (faults []fault) {
	for i := range clusterMasters {
		faults = append(faults, fault{fmt.Sprintf("hang of node %d", i+1), func(s *supervisor, _ *seat, _ *rand.Rand) error {
			n, began := s.servers.nodes[i], history.Now()
			n.signal(syscall.SIGSTOP)
			time.Sleep(2*redisTimeout + rand.N(4*redisTimeout))
			n.signal(syscall.SIGCONT)
			err := s.servers.awaitHealthy()
			s.log.Write(history.Event{Op: history.Hit, Fault: history.NodeHang, Node: i + 1, Began: began, Process: history.Everyone})
			return err
		}})
	}
	return faults
}

// watchNode records when a node did not answer in time, because of the node or because this process
// did not run.
func (s *supervisor) watchNode(ctx context.Context, i int) {
	const interval = 20 * time.Millisecond
	for last := history.Now(); ctx.Err() == nil; {
		time.Sleep(interval)
		_, _ = s.servers.nodes[i].isMaster(ctx)
		now := history.Now()
		if now.Sub(last) > slow+interval {
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

// triedEnough returns an error if a run has too few of the calls that its profile is meant to test.
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
			errs = append(errs, fmt.Errorf("%d %s, want %d at least", tried[trial], trial, least))
		}
	}
	return errors.Join(errs...)
}
