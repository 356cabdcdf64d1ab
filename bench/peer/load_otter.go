package peer

import (
	"context"

	"github.com/maypok86/otter/v2"
)

// bareOtter is the lower bound for a near cache: otter's own lookup of a pointer. Entries
// do not expire, and the loader runs only after a miss.
type bareOtter struct{ c *otter.Cache[string, *Thing] }

func openOtter(context.Context, Config) (Adapter, error) {
	c, err := otter.New(&otter.Options[string, *Thing]{MaximumSize: copies})
	return &bareOtter{c: c}, err
}

func (a *bareOtter) Get(ctx context.Context, key string, fetch Fetch) (Thing, error) {
	if t, ok := a.c.GetIfPresent(key); ok {
		return *t, nil
	}
	t, err := a.c.Get(ctx, key, otter.LoaderFunc[string, *Thing](func(ctx context.Context, key string) (*Thing, error) {
		t, err := fetch(ctx, key)
		return &t, err
	}))
	if err != nil {
		return Thing{}, err
	}
	return *t, nil
}

func (a *bareOtter) Close() error {
	a.c.StopAllGoroutines()
	return nil
}
