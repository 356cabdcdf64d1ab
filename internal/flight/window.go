package flight

import (
	"context"
	"sync/atomic"
	"time"
)

// In the recent-miss window of a flight, callers join it without a lookup of their own: a
// lookup has just found the key missing.

// epoch is the zero of the times in windows. It has a monotonic clock.
var epoch = time.Now()

// windows lets a caller check without a lock whether any flight has a recent-miss window.
type windows struct {
	count atomic.Int32 // flights in Group.flights that have opened a window
	end   atomic.Int64 // of the last window, since epoch
}

func (w *windows) open() bool { return w.count.Load() > 0 && int64(time.Since(epoch)) < w.end.Load() }

// HasMissWindow reports whether the flight of a key has an open recent-miss window.
func (g *Group[V]) HasMissWindow(key string) bool {
	if !g.windows.open() {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.flights[key]
	return f != nil && f.windowOpen()
}

// JoinWithoutLookup is Join for a caller that has made no lookup. It joins the flight of
// the key if that has an open recent-miss window. If the key has no flight, it starts one,
// unless load is nil. It is not ok if the caller must make a lookup first.
func (g *Group[V]) JoinWithoutLookup(ctx context.Context, key string, came Arrival, load func(ctx context.Context, f *Flight[V]) (V, error)) (t Ticket[V], ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.flights[key]
	started := f == nil
	switch {
	case g.closed != nil, started && load == nil, !started && !f.windowOpen():
		return Ticket[V]{}, false
	case started:
		f = g.start(ctx, key, load)
	}
	return f.join(came, started), true
}

// windowOpen reports whether the recent-miss window is open. The caller holds the group's mu.
func (f *Flight[V]) windowOpen() bool { return f.hasWindow && time.Now().Before(f.windowEnd) }

// OpenMissWindow opens the recent-miss window for a time, or extends it. It does nothing
// once the flight is closed to joiners.
func (f *Flight[V]) OpenMissWindow(lasts time.Duration) {
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	if f.group.flights[f.key] != f {
		return
	}
	w := &f.group.windows
	if !f.hasWindow {
		f.hasWindow = true
		w.count.Add(1)
	}
	f.windowEnd = time.Now().Add(lasts)
	if end := int64(f.windowEnd.Sub(epoch)); w.count.Load() == 1 || end > w.end.Load() {
		w.end.Store(end)
	}
}
