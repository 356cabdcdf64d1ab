package mutant

// Soaked are the mutants that a soak must catch. The first seven are those of
// every lock and cache that has gone wrong before.
var Soaked = []Mutant{
	{
		"a value is stored without a look at whose lease it is", "internal/protocol/fill.lua",
		`if owner ~= ARGV[1] then`, `if owner == "nobody" then`,
	},
	{
		"an invalidation leaves the lease, so a value from before is stored", "internal/protocol/invalidate.lua",
		`redis.call("DEL", KEYS[2])`, ``,
	},
	{
		"a value whose store was refused is returned to all", "load.go",
		`r.call.Close() filled, err :=`, "r.call.Close()\n\tr.call.Mark()\n\tfilled, err :=",
	},
	{
		"a load can be joined while it is stored, and its value is returned to those too", "load.go",
		`r.call.Close() filled, err := r.redis.Fill(`, "defer r.call.Close()\n\tdefer r.call.Mark()\n\tfilled, err := r.redis.Fill(",
	},
	{
		"no watchdog: a lease is taken for renewed and is not", "internal/lease/lease.go",
		`ours, err := k.renew(ctx)`, `ours, err := true, ctx.Err()`,
	},
	{
		"a lease is given back without a look at whose it is", "internal/protocol/release.lua",
		`if owner ~= ARGV[1] then return 0 end`, ``,
	},
	{
		"no second look for the value when the lease is given", "internal/protocol/acquire.lua",
		`if not force then local length`, `if false then local length`,
	},
	{
		"a lock has one holder too many", "internal/protocol/lock.lua",
		`while holders < slots do`, `while holders <= slots do`,
	},
	{
		"fences are counted, and begin again with an empty Redis", "internal/protocol/lock.lua",
		`math.max(clock, last + 1)`, `last + 1`,
	},
	{
		"a fetch does not see that somebody writes", "internal/protocol/acquire.lua",
		`redis.call("HSET", KEYS[2], "u", "1")`, `local _ = 0`,
	},
	{
		"a value is kept for ever", "internal/protocol/fill.lua",
		`redis.call("SET", KEYS[1], ARGV[3], "PX", ttl)`, `redis.call("SET", KEYS[1], ARGV[3])`,
	},
	{
		"Close leaves the subscription", "loader.go",
		`l.background.Wait() l.mailbox.Close()`, `l.background.Wait()`,
	},
}
