package fetchonce_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/fetchonce/fetchonce/internal/redistest"
)

// TestMain runs the tests with no more rights in Redis than docs/redis.acl gives.
func TestMain(m *testing.M) {
	if err := redistest.Limit("docs/redis.acl", "test", "test:*", "other"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
