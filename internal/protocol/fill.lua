-- fill.lua: store a fetched value, end the lease and notify the waiters. It is refused unless the caller still has the
-- lease.
-- Sent twice, the second request finds the value with its fence and answers the same.
-- KEYS  1 value   2 meta   [3 the value, staged: a large argument would block the server]
--       or the meta alone, while the value is on another node of a cluster: then nothing is stored. script.go names the
--       keys.
-- ARGV  1 owner   2 fence (8 bytes)   3 envelope ("" if staged)   4 ttl (ms; 0: notify, but store nothing)
--       5 channel prefix   6 head of the value notification   7 retry notification
--       8 largest value in a notification (bytes)   9 most waiters that receive the value   10 channel of changes
-- Returns {"stored", waiters}, also if it was only notified;
--         {"refused", waiters, error} if Redis did not store it, for example for lack of memory: the lease has ended,
--         the waiters were notified, and the old value is still there;
--         {"lost", bytes or false}: the caller had no lease; nothing was stored. It answers the present value if that
--         is small.
local lease = read("HMGET", meta, "o", "u") or {}
local owner = lease[1]
local ttl = ARGV[4]
if lease[2] then
  ttl = "0" -- it was fetched during an Update
end

if owner ~= ARGV[1] then
  if staged then redis.call("UNLINK", staged) end
  if not value then return {"lost", false} end
  local stored = read("GETRANGE", value, 24, 31)
  if stored == ARGV[2] then return {"stored", 0} end
  local length = read("STRLEN", value)
  if length and length > 0 and length <= tonumber(ARGV[8]) then
    return {"lost", redis.call("GET", value)}
  end
  return {"lost", false}
end

local refused
if not value then
  refused = "TRYAGAIN the value is on another node"
elseif ttl == "0" then
  -- The value is not stored, but an unusable one is deleted all the same.
  redis.call("UNLINK", value)
  if staged then redis.call("UNLINK", staged) end
elseif staged then
  refused = redis.pcall("RENAME", staged, value).err
  if not refused then redis.call("PEXPIRE", value, ttl) end
else
  refused = redis.pcall("SET", value, ARGV[3], "PX", ttl).err
end
local waiters = registered(meta)
redis.call("UNLINK", meta) -- before the notifications: a waiter then finds the lease free

if value then announce(ARGV[10], value) end
if #waiters > 0 then
  local message = ARGV[7]
  if ARGV[3] ~= "" and #ARGV[3] <= tonumber(ARGV[8]) and #waiters <= tonumber(ARGV[9]) then
    message = ARGV[6] .. ARGV[3]
  end
  for _, process in ipairs(waiters) do notify(ARGV[5] .. process, message) end
end
if refused then return answer({"refused", #waiters, refused}) end
return answer({"stored", #waiters})
