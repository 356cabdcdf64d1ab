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

// pulse writes down what befalls Redis by itself: when it did not answer in time, and
// when it has other masters, or too many.
func (s *supervisor) pulse(ctx context.Context) {
	const beat = 20 * time.Millisecond
	masters, seen := s.watch(nil, 0)
	c := census{allowed: len(masters), were: make(map[*node]bool)}
	for ; ctx.Err() == nil; time.Sleep(beat) {
		masters, seen = s.watch(masters, seen)
		round := history.Now()
		for _, n := range s.servers.nodes {
			began := history.Now()
			master, err := n.isMaster(ctx)
			c.note(n, master, err)
			if history.Now().Sub(began) > slow {
				s.log.Write(history.Event{Op: history.Hit, Fault: history.RedisSlow, Process: history.Everyone, Began: began})
			}
		}
		s.tooMany(c.count(round))
	}
	s.tooMany(c.alone, c.many)
}

// tooMany writes down that there were too many masters, now that they are not.
func (s *supervisor) tooMany(since history.Time, over bool) {
	if over {
		s.log.Write(history.Event{Op: history.Hit, Fault: history.TwoMasters, Process: history.Everyone, Began: since})
	}
}

// A census is of the nodes that take themselves for masters. One that was replaced
// goes on as such until it is told, and whoever is still connected to it, or has
// asked before the others knew, is answered.
type census struct {
	allowed int
	were    map[*node]bool
	alone   history.Time // when no more than are allowed were last seen
	many    bool         // more are there
}

// note takes down what a node says of itself. One that does not answer in time goes on
// as what it was; one that cannot be reached is dead.
func (c *census) note(n *node, master bool, err error) {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return
	}
	c.were[n] = master && err == nil
}

// count ends a round, in which each node was asked. It reports since when there were
// too many, if that is over.
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

// watch writes down which nodes are masters, and when another became one that nobody
// had told to: a busy machine does that too. It returns the masters and when they
// were seen, to be given to it the next time.
func (s *supervisor) watch(before []*node, seen history.Time) ([]*node, history.Time) {
	planned := s.planned.Load()
	now, err := s.servers.masters()
	if err != nil {
		return before, seen // they do not agree yet
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
		planned = false // it has come and gone
	}
	if before != nil && !planned {
		s.log.Write(history.Event{Op: history.Hit, Fault: history.StopOver, Process: history.Everyone, Began: seen.Add(-rules.Recovery), Value: "unplanned"})
		if s.profile == "sentinel" {
			_ = before[0].demote(now[0]) // the Sentinels would take 8 s to think of that
		}
	}
	return now, history.Now()
}
