//go:build linux

package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/fetchonce/fetchonce/chaos/history"
)

// watchRedis records faults that the supervisor did not inject: slow replies, other masters and too many
// masters.
func (s *supervisor) watchRedis(ctx context.Context) {
	const interval = 20 * time.Millisecond
	masters, at := s.watchMasters(nil, 0)
	c := census{allowed: len(masters), were: make(map[*node]bool)}
	for ; ctx.Err() == nil; time.Sleep(interval) {
		masters, at = s.watchMasters(masters, at)
		round := history.Now()
		for _, n := range s.servers.nodes {
			began := history.Now()
			master, err := n.isMaster(ctx)
			c.record(n, master, err)
			if history.Now().Sub(began) > slow {
				s.log.Write(history.Event{Op: history.Hit, Fault: history.RedisSlow, Process: history.Everyone, Began: began})
			}
		}
		s.recordTooMany(c.count(round))
	}
	s.recordTooMany(c.alone, c.many)
}

// recordTooMany records that there were too many masters, when that is over.
func (s *supervisor) recordTooMany(since history.Time, over bool) {
	if over {
		s.log.Write(history.Event{Op: history.Hit, Fault: history.TwoMasters, Process: history.Everyone, Began: since})
	}
}

// A census counts the nodes that say they are masters. A replaced master says so until a Sentinel or
// the cluster reconfigures it. Meanwhile it answers clients that are connected to it or know no newer
// master.
type census struct {
	allowed int
	were    map[*node]bool // what each node last said
	alone   history.Time   // when there were last no more than allowed
	many    bool           // there are more now
}

// record records what a node says of itself. A node that does not answer in time stays what it was. A
// node that cannot be reached is dead.
func (c *census) record(n *node, master bool, err error) {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return
	}
	c.were[n] = master && err == nil
}

// count ends a round of all nodes. It reports whether too many masters have just ended, and since when
// there were too many.
func (c *census) count(round history.Time) (since history.Time, over bool) {
	masters := 0
	for _, is := range c.were {
		if is {
			masters++
		}
	}
	if masters > c.allowed {
		c.many = true
		return 0, false
	}
	since, over = c.alone, c.many
	c.alone, c.many = round, false
	return since, over
}

// watchMasters records which nodes are masters, and failovers that the supervisor did not plan, which a
// busy machine causes. It takes its last results and returns the masters and the time.
func (s *supervisor) watchMasters(before []*node, at history.Time) ([]*node, history.Time) {
	planned := s.planned.Load()
	now, err := s.servers.masters()
	if err != nil {
		return before, at // the Sentinels do not agree yet
	}
	if slices.Equal(before, now) {
		return now, history.Now()
	}
	var names []string
	for _, n := range now {
		names = append(names, n.addr)
	}
	s.log.Write(history.Event{Op: history.Masters, Value: strings.Join(names, " ")})
	planned = planned || s.planned.Load()
	if first := s.successor.Load(); first != nil && now[0] != first {
		planned = false // the planned successor was replaced
	}
	if before != nil && !planned {
		s.log.Write(history.Event{Op: history.Hit, Fault: history.StopOver, Process: history.Everyone, Began: at.Add(-rules.Recovery), Value: "unplanned"})
		if s.profile == "sentinel" {
			_ = before[0].demote(now[0]) // the Sentinels would do so after 8 s
		}
	}
	return now, history.Now()
}
