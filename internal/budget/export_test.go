package budget

import "math"

// Spent returns the estimate for data, whatever the limit.
func (b *Budget) Spent(data []byte) int64 {
	all := *b
	all.limit, all.worst = math.MaxInt64/2, math.MaxInt64
	w := &walk{data: data, limit: all.limit, wild: b.shapes.wild, growth: 1}
	if b.shapes.json {
		w.growth = 2
		(&jsonWalk{w}).value(all.root)
		return w.spent
	}
	for root := all.root; w.off < len(data); root = w.wild {
		(&msgpackWalk{w}).value(root)
	}
	return w.spent
}

// Worst returns what a byte of data costs at most.
func (b *Budget) Worst() int64 { return b.worst }

// Allocated is allocated.
var Allocated = allocated
