-- release.lua: end our lease without a value, and tell the waiters why.
-- KEYS  1 meta
-- ARGV  1 owner   2 channel prefix   3 message   4 failure   5 share the failure with later callers for so long (ms; 0: no)
--       6 "1" to share it only with those who have an old value: they pause
-- Returns 1 if the lease was ours, else 0: then nothing was done.
local meta = redis.pcall("HGETALL", KEYS[1])
if meta.err then return 0 end
local owner, fence
for i = 1, #meta, 2 do
  if meta[i] == "o" then owner = meta[i + 1] elseif meta[i] == "f" then fence = meta[i + 1] end
end
if owner ~= ARGV[1] then return 0 end
redis.call("DEL", KEYS[1])
if ARGV[5] ~= "0" then
  redis.call("HSET", KEYS[1], "e", ARGV[4], "f", fence)
  if ARGV[6] == "1" then redis.call("HSET", KEYS[1], "b", "1") end
  redis.call("PEXPIRE", KEYS[1], ARGV[5])
end
for i = 1, #meta, 2 do
  if string.byte(meta[i]) == 119 then notify(ARGV[2] .. string.sub(meta[i], 2), ARGV[3]) end
end
return answer(1)
