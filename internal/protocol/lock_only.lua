-- lock_only.lua: the fast path of lock_release.lua: the lease is the only one, and there is no queue.
-- The lease may have ended: no other owner had the lock since.
if not state.err then
  local free, owner = string.match(state, "^(lock %d+) (%S+) %d+ %d+/?%d*$")
  if owner == ARGV[1] and (not KEYS[2] or redis.call("EXISTS", KEYS[2]) == 0) then
    if redis.pcall("SET", KEYS[1], free, "PX", remembered).err then
      redis.call("PEXPIRE", KEYS[1], remembered) -- a full Redis then allows the SET
      redis.call("SET", KEYS[1], free, "PX", remembered)
    end
    return 1
  end
end
