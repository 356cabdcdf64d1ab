package peer

import (
	"context"

	"github.com/maypok86/otter/v2"
)

// bareOtter is the least that a copy in the process costs: otter's own look-up,
// and its loader only after a miss.
type bareOtter struct{ c *otter.Cache[string, Thing] }

func openOtter(_ context.Context, cfg Config) (Adapter, error) {
	c, err := otter.New(&otter.Options[string, Thing]{
		MaximumSize:      copies,
		ExpiryCalculator: otter.ExpiryWriting[string, Thing](cfg.TTL),
	})
	return &bareOtter{c: c}, err
}

func (a *bareOtter) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	if t, ok := a.c.GetIfPresent(key); ok {
		return t, nil
	}
	return a.c.Get(ctx, key, otter.LoaderFunc[string, Thing](fetch))
}

func (a *bareOtter) Close() error {
	a.c.StopAllGoroutines()
	return nil
}
