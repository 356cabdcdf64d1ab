-- lock_release.lua: give a lease back, or leave the queue, whichever the owner is in. The longest waiter has the lease next.
-- ARGV  4 the b that came with the lease, if there was one
-- Returns 1 if there was such a lease, or this very request has given it back before; else 0.
local ours = 0
if fences[ARGV[1]] or (born and born == ARGV[4]) then ours = 1 end
if fences[ARGV[1]] then
  drop(ARGV[1])
else
  redis.call("ZREM", KEYS[2], ARGV[1])
  redis.call("HDEL", KEYS[3], ARGV[1])
end
settle()
finish()
return ours
