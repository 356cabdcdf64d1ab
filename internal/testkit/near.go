package testkit

import (
	"context"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
)

// WithNear adds a near cache and a TTL of an hour.
func WithNear(opt *Options) {
	opt.Near = fetchonce.Near{Entries: 1000, TTL: time.Hour}
	opt.TTL = time.Hour
}

// Source returns the value of a key and where a Load found it.
func Source(t *testing.T, l Loader, key string) (string, fetchonce.Source) {
	t.Helper()
	got, err := l.Load(t.Context(), key, func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "fetched", nil })
	if err != nil {
		t.Fatal(err)
	}
	return got.Value, got.Source
}

// WarmNear waits until the near cache of a Loader has an entry for a key that is in Redis.
func WarmNear(t *testing.T, r Backend, l Loader, key, value string) {
	t.Helper()
	r.Until("the near cache has an entry for "+key, func() bool {
		got, from := Source(t, l, key)
		return got == value && from == fetchonce.SourceNear
	})
}
