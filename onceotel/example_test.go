package onceotel_test

import (
	"context"
	"fmt"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/onceotel"
)

// Each Loader has its own Trace, so their metrics can be distinguished.
func Example() {
	server := miniredis.NewMiniRedis()
	if err := server.Start(); err != nil {
		panic(err)
	}
	defer server.Close()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()

	trace, err := onceotel.Trace(onceotel.WithAttributes(attribute.String("loader", "things")))
	if err != nil {
		panic(err)
	}
	things, err := fetchonce.New(rdb, fetchonce.Options[string]{Prefix: "things", Trace: trace})
	if err != nil {
		panic(err)
	}
	defer things.Close()
	thing, err := things.Get(context.Background(), "teapot", func(context.Context, string) (string, error) {
		return "a teapot", nil
	})

	fmt.Println(thing, err)
	// Output: a teapot <nil>
}
