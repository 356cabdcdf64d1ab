package fetchonce_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/testkit"
)

type (
	backend     = testkit.Backend
	options     = testkit.Options
	loader      = testkit.Loader
	lockOptions = testkit.LockOptions
)

// newLoader returns a Loader over a new client, as a new process has it. It waits until the
// Loader is subscribed: on a busy machine that takes longer than a first miss waits.
func newLoader(t *testing.T, r backend, change ...func(*options)) loader {
	t.Helper()
	l := testkit.NewLoader(t, r, change...)
	if r.Fake() {
		return l
	}
	for end := time.Now().Add(2 * time.Second); !l.Listen() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	return l
}

func isCluster(rdb redis.UniversalClient) bool {
	_, ok := rdb.(*redis.ClusterClient)
	return ok
}
