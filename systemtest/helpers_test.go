package systemtest_test

import (
	"context"

	"github.com/fetchonce/fetchonce/internal/testkit"
)

type (
	backend     = testkit.Backend
	options     = testkit.Options
	loader      = testkit.Loader
	lockOptions = testkit.LockOptions
)

// fetchMany returns "fetched" for every key.
func fetchMany(_ context.Context, keys []string) (map[string]string, error) {
	values := make(map[string]string)
	for _, key := range keys {
		values[key] = "fetched"
	}
	return values, nil
}
