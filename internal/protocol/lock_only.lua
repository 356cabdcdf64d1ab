-- lock_only.lua: the fast path of lock_release.lua: the lease is the only one, and there is no queue.
-- The lease may have ended: no other owner had the lock since.
local state = redis.pcall("GETRANGE", KEYS[1], 0, 131072)
if not state.err then
  local free, owner = string.match(state, "^(lock %d+) (%S+) %d+ %d+/?%d*$")
  if owner == ARGV[1] and (not KEYS[2] or redis.call("EXISTS", KEYS[2]) == 0) then
    if redis.pcall("SET", KEYS[1], free, "PX", "1000").err then
      redis.call("PEXPIRE", KEYS[1], "1000") -- a full Redis then allows the SET
      redis.call("SET", KEYS[1], free, "PX", "1000")
    end
    return 1
  end
end
