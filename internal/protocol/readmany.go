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

// ReadMany reads values of up to limit bytes, and calls take with each value and the index of its
// key. It sends the reads to at or, if that is nil, to the node of each key.
//
// Small values take one round trip for each thousand keys. The first read of a value gets at most
// its share of readBytes. If the value is larger, it is read again, with few others at a time.
func (c *Client) ReadMany(ctx context.Context, at Runner, keys []Key, limit int, take func(i int, got Got)) {
	for start := 0; start < len(keys); start += readKeys {
		some := keys[start:min(start+readKeys, len(keys))]
		first := min(max(readBytes/len(some), leastShare), limit)
		var large []int
		for i, got := range c.GetMany(ctx, at, some, first) {
			if len(got.Value) > first && first < limit {
				large = append(large, start+i)
			} else {
				take(start+i, got)
			}
		}
		for few := range slices.Chunk(large, max(readBytes/limit, 1)) {
			again := make([]Key, len(few))
			for j, i := range few {
				again[j] = keys[i]
			}
			for j, got := range c.GetMany(ctx, at, again, limit) {
				take(few[j], got)
			}
		}
	}
}
