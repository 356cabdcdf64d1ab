package flight

import "context"

// Do joins the flight of a key, or starts it, and waits for its result.
func (g *Group[V]) Do(ctx context.Context, key string, load func(ctx context.Context, f *Flight[V]) (V, error)) (v V, late bool, err error) {
	t, err := g.Join(ctx, key, g.Arrive(), load)
	if err != nil {
		return v, false, err
	}
	return t.Wait(ctx)
}

// AnyMissWindow reports whether a flight may have an open recent-miss window.
func (g *Group[V]) AnyMissWindow() bool { return g.windows.open() }
