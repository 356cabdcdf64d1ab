package main

import (
	"context"
	"fmt"
	"time"

	"github.com/fetchonce/fetchonce/bench/peer"
	"github.com/fetchonce/fetchonce/bench/run"
)

// lockLease is longer than any run, as the peers do not renew what is held.
const lockLease = time.Minute

func lockerNames(run.Params) []string {
	var names []string
	for _, l := range peer.Lockers {
		names = append(names, l.Name)
	}
	return names
}

// openLock opens the library of locks that a worker is to measure, and uses it
// once: then its scripts are loaded.
func openLock(ctx context.Context, w *run.Worker) (peer.Lock, error) {
	for _, l := range append(peer.Lockers, peer.NoLock) {
		if l.Name != w.Peer {
			continue
		}
		lock, err := l.Open(ctx, peer.Config{Addr: w.Redis, Lease: lockLease})
		if err != nil {
			return nil, err
		}
		return lock, lock.Do(ctx, fmt.Sprintf("warm%d", w.Index), func(context.Context) error { return nil })
	}
	return nil, fmt.Errorf("no locker %q", w.Peer)
}
