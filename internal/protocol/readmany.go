package protocol

import (
	"context"
	"slices"
)

// ReadMany reads so much at once, and hands it out before it reads on.
const (
	readBytes = 32 << 20 // if all values are as large as the read allows
	readKeys  = 2000
	readLeast = 16 << 10 // of each value
)

// A readMany is one ReadMany.
type readMany struct {
	*Client
	at    Runner
	keys  []Key
	limit int
	take  func(i int, got Got)
}

// ReadMany reads values of up to limit bytes, and calls take with each value and the index of
// its key. It reads at the node at, or at the node of each key if at is nil.
//
// Small values take one round trip for each thousand keys. The first read of a value that is
// larger than its share of readBytes gets its beginning only. Such values are read once more,
// few at a time.
func (c *Client) ReadMany(ctx context.Context, at Runner, keys []Key, limit int, take func(i int, got Got)) {
	r := readMany{c, at, keys, limit, take}
	all := make([]int, len(keys))
	for i := range all {
		all[i] = i
	}
	for some := range slices.Chunk(all, readKeys) {
		share := max(readBytes/len(some), readLeast)
		large := r.read(ctx, some, min(share, limit))
		for few := range slices.Chunk(large, max(readBytes/limit, 1)) {
			r.read(ctx, few, limit)
		}
	}
}

// read reads the values of some keys, up to limit bytes of each. It returns the keys whose
// values are larger, and not too large.
func (r *readMany) read(ctx context.Context, some []int, limit int) (large []int) {
	keys := make([]Key, len(some))
	for j, i := range some {
		keys[j] = r.keys[i]
	}
	for j, got := range r.GetMany(ctx, r.at, keys, limit) {
		if len(got.Value) > limit && limit < r.limit {
			large = append(large, some[j])
			continue
		}
		r.take(some[j], got)
	}
	return large
}
