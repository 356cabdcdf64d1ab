package mutant

// Soaked lists the mutants that a soak must catch. The first seven are well-known mistakes of locks
// and caches.
var Soaked = []Mutant{
	{
		Name: "a value is stored without a check of its lease",
		File: "internal/protocol/fill.lua",
		Old:  `if owner ~= ARGV[1] then`,
		New:  `if owner == "nobody" then`,
	},
	{
		Name: "an invalidation keeps the lease, so an earlier value is stored",
		File: "internal/protocol/invalidate.lua",
		Old:  `redis.call("UNLINK", meta)`,
		New:  ``,
	},
	{
		Name:   "a value that was not stored is returned to all callers",
		File:   "fetch.go",
		Old:    `r.flight.CloseToJoiners() filled, err :=`,
		New:    "r.flight.CloseToJoiners()\n\tr.flight.Advance()\n\tfilled, err :=",
		Faults: "delay",
	},
	{
		Name:   "a load can be joined while it is stored, and late callers receive its value",
		File:   "fetch.go",
		Old:    `r.flight.CloseToJoiners() filled, err := r.l.redis.Fill(`,
		New:    "defer r.flight.CloseToJoiners()\n\tdefer r.flight.Advance()\n\tfilled, err := r.l.redis.Fill(",
		Faults: "delay",
	},
	{
		Name:   "no watchdog: a lease that was not renewed is taken for renewed",
		File:   "internal/lease/lease.go",
		Old:    `ours, err := k.renew(ctx)`,
		New:    `ours, err := true, ctx.Err()`,
		Faults: "fetch error",
	},
	{
		Name:   "a lock is released without a check of its owner",
		File:   "internal/protocol/lock_release.lua",
		Old:    `if fences[ARGV[1]] then ours = 1 leaving = ARGV[1] drop(leaving)`,
		New:    `if true then ours = 1 for other in pairs(fences) do drop(other) end`,
		Faults: "stop at locked",
	},
	{
		Name:   "no second lookup when the lease is acquired",
		File:   "internal/protocol/acquire.lua",
		Old:    `if not force and there > 0`,
		New:    `if false and there > 0`,
		Faults: "delay",
	},
	{
		Name: "a lock has one holder too many",
		File: "internal/protocol/lock.lua",
		Old:  `while holders < slots and waiters > 0 do`,
		New:  `while holders <= slots and waiters > 0 do`,
	},
	{
		Name: "fences are counted, and begin again with an empty Redis",
		File: "internal/protocol/lock_free.lua",
		Old:  `math.max(clock, last + fences_per_lease)`,
		New:  `last + fences_per_lease`,
	},
	{
		Name:   "a fetch ignores write marks",
		File:   "internal/protocol/acquire.lua",
		Old:    `redis.call("HSET", KEYS[2], "u", "1")`,
		New:    `local _ = 0`,
		Faults: "kill at written",
	},
	{
		Name:   "a value is kept for ever",
		File:   "internal/protocol/fill.lua",
		Old:    `redis.pcall("SET", value, ARGV[3] .. others, "PX", longest_ttl)`,
		New:    `redis.pcall("SET", value, ARGV[3] .. others)`,
		Faults: "fetch error",
		Late:   true,
	},
	{
		Name:   "Close leaves the subscription",
		File:   "internal/client/client.go",
		Old:    `c.Mailbox.Close()`,
		New:    ``,
		Faults: "fetch error",
		Late:   true,
	},
	{
		Name:    "a lock is renewed only while Redis has memory",
		File:    "internal/protocol/lock_renew.lua",
		Old:     `finish(true)`,
		New:     `finish()`,
		Profile: "full",
	},
	{
		Name:    "all nodes of a cluster share one queue",
		File:    "internal/batch/router.go",
		Old:     `if cluster, ok := rdb.(*redis.ClusterClient); ok {`,
		New:     `if cluster, ok := rdb.(*redis.ClusterClient); ok && false {`,
		Profile: "illnode",
	},
}
