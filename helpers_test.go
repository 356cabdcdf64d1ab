package fetchonce_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

type (
	backend     = testkit.Backend
	options     = testkit.Options
	loader      = testkit.Loader
	lockOptions = testkit.LockOptions
)

// newLoader returns a Loader over a new client, which stands for a new process. It waits until the
// Loader is subscribed: on a busy machine, that takes longer than a first miss waits for it.
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

// TestMain runs the tests with no more rights in Redis than docs/redis.acl gives.
func TestMain(m *testing.M) {
	if err := redistest.Limit("docs/redis.acl", "test", "test:*", "other"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
