package protocol

import (
	"context"
	"slices"
)

// Limits of what ReadMany reads before it calls take.
const (
	readBytes  = 32 << 20 // the sum of the values, if each is as large as its share
	readKeys   = 2000
	leastShare = 16 << 10 // of readBytes, for each value
)

// A readMany is the state of one ReadMany.
type readMany struct {
	*Client
	at    Runner
	keys  []Key
	limit int
	take  func(i int, got Got)
}

// ReadMany reads values of up to limit bytes, and calls take with each value and the index of its
// key. It sends the reads to at or, if that is nil, to the node of each key.
//
// Small values take one round trip for each thousand keys. The first read of a value gets at most
// its share of readBytes. If the value is larger, it is read again, with few others at a time.
func (c *Client) ReadMany(ctx context.Context, at Runner, keys []Key, limit int, take func(i int, got Got)) {
	r := readMany{c, at, keys, limit, take}
	all := make([]int, len(keys))
	for i := range all {
		all[i] = i
	}
	for some := range slices.Chunk(all, readKeys) {
		share := max(readBytes/len(some), leastShare)
		large := r.read(ctx, some, min(share, limit))
		for few := range slices.Chunk(large, max(readBytes/limit, 1)) {
			r.read(ctx, few, limit)
		}
	}
}

// read reads up to limit bytes of the values of some keys. It returns the keys whose values are
// larger and still to be read.
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
