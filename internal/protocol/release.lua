-- release.lua: end a lease without a value, and notify the waiters.
-- KEYS  1 meta
-- ARGV  1 owner   2 channel prefix   3 notification   4 failure
--       5 how long to share the failure with later callers (ms; 0: no)
--       6 "1" to share it only with callers that have a stale value: a backoff
-- Returns 1, or 0 if the caller had no lease: then nothing was done.
local lease = read("HMGET", KEYS[1], "o", "f") or {}
local owner, fence = lease[1], lease[2]
if owner ~= ARGV[1] then return 0 end
local waiters = registered(KEYS[1])
redis.call("UNLINK", KEYS[1])
if ARGV[5] ~= "0" then
  redis.call("HSET", KEYS[1], "e", ARGV[4], "f", fence or "0")
  if ARGV[6] == "1" then redis.call("HSET", KEYS[1], "b", "1") end
  redis.call("PEXPIRE", KEYS[1], ARGV[5])
end
for _, process in ipairs(waiters) do notify(ARGV[2] .. process, ARGV[3]) end
return answer(1)
