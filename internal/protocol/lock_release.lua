-- lock_release.lua: release a lease, or leave the queue. The longest waiter receives the lease.
-- Returns 1 if there was such a lease, else 0. Sent twice, the second request finds none and answers 0: it cannot
-- distinguish a release from a loss, which is harmless.
local ours = 0
if fences[ARGV[1]] then
  ours = 1
  leaving = ARGV[1]
  drop(leaving)
elseif queue then
  redis.call("ZREM", queue, ARGV[1], expiry(ARGV[1]))
end
settle()
finish(true)
return answer(ours)
