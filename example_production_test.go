package fetchonce_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
)

// In production, set the client's timeouts, and let it retry once.
func ExampleNew_client() {
	rdb := redis.NewClient(&redis.Options{
		Addr:                  "redis.example:6379",
		DialTimeout:           time.Second,
		ReadTimeout:           time.Second, // WriteTimeout follows it
		DialerRetries:         1,           // dials for each attempt
		MaxRetries:            1,           // further attempts
		ContextTimeoutEnabled: true,        // a command ends with its context
	})
	defer rdb.Close()
	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things"})
	if err != nil {
		panic(err)
	}
	defer things.Close()
}

// A server ends its requests first, then its Loaders and Lockers, and the Redis client last.
func ExampleLoader_Close_server() {
	rdb, end := newRedis()
	defer end()
	things, err := fetchonce.New(rdb, fetchonce.Options[Thing]{Prefix: "things"})
	if err != nil {
		panic(err)
	}
	locker, err := fetchonce.NewLocker(rdb, fetchonce.LockOptions{Prefix: "locks"})
	if err != nil {
		panic(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Second}

	shutDown := func(ctx context.Context) error {
		return errors.Join(
			server.Shutdown(ctx), // waits for the requests
			locker.Close(),       // ends the holders' contexts, waits for their releases
			things.Close(),       // ends fetches, releases leases
			rdb.Close(),
		)
	}
	fmt.Println(shutDown(context.Background()))
	// Output: <nil>
}
