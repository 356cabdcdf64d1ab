-- lock_release.lua: give a lease back, or leave the queue, whichever the owner is in. The longest waiter has the lease next.
-- Returns 1 if there was such a lease, else 0. Sent twice, the second request finds none and answers 0: it cannot tell that
-- from a lease that was lost, and to take a release for a loss harms nobody.
local ours = 0
if fences[ARGV[1]] then
  ours = 1
  drop(ARGV[1])
elseif queue then
  redis.call("ZREM", queue, ARGV[1])
  redis.call("HDEL", KEYS[3], ARGV[1])
end
settle()
finish(true)
return answer(ours)
