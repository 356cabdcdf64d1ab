package flight

import "context"

// Do joins the flight of a key, or starts it, and waits for its result.
func (g *Group[V]) Do(ctx context.Context, key string, load func(ctx context.Context, f *Flight[V]) (V, error)) (Answer[V], error) {
	t, err := g.Join(ctx, key, g.Arrive(), load)
	if err != nil {
		return Answer[V]{}, err
	}
	return t.Wait(ctx)
}
