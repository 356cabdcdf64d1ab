package mutant

// Soaked are the mutants that a soak must catch. The first seven are those of
// every lock and cache that has gone wrong before.
var Soaked = []Mutant{
	{
		Name: "a value is stored without a look at whose lease it is",
		File: "internal/protocol/fill.lua",
		Old:  `if owner ~= ARGV[1] then`,
		New:  `if owner == "nobody" then`,
	},
	{
		Name: "an invalidation leaves the lease, so a value from before is stored",
		File: "internal/protocol/invalidate.lua",
		Old:  `redis.call("UNLINK", meta)`,
		New:  ``,
	},
	{
		Name:   "a value whose store was refused is returned to all",
		File:   "fetch.go",
		Old:    `r.flight.Close() filled, err :=`,
		New:    "r.flight.Close()\n\tr.flight.Advance()\n\tfilled, err :=",
		Faults: "delay",
	},
	{
		Name:   "a load can be joined while it is stored, and its value is returned to those too",
		File:   "fetch.go",
		Old:    `r.flight.Close() filled, err := r.l.redis.Fill(`,
		New:    "defer r.flight.Close()\n\tdefer r.flight.Advance()\n\tfilled, err := r.l.redis.Fill(",
		Faults: "delay",
	},
	{
		Name:   "no watchdog: a lease is taken for renewed and is not",
		File:   "internal/lease/lease.go",
		Old:    `ours, err := k.renew(ctx)`,
		New:    `ours, err := true, ctx.Err()`,
		Faults: "fetch error",
	},
	{
		Name:   "a lock is given back without a look at whose it is",
		File:   "internal/protocol/lock_release.lua",
		Old:    `if fences[ARGV[1]] then ours = 1 drop(ARGV[1])`,
		New:    `if true then ours = 1 for other in pairs(fences) do drop(other) end`,
		Faults: "stop at locked",
	},
	{
		Name:   "no second look for the value when the lease is given",
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
		Name:   "a fetch does not see that somebody writes",
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
