-- fill.lua: store a fetched value, end the lease and notify the waiters. It is refused unless the caller still has the
-- lease.
-- The value is a sequence of segments, one for each schema; see internal/envelope. The new one comes first, and those
-- of other schemas are kept.
-- Sent twice, the second request finds the value with its fence and answers the same.
-- KEYS  1 value   2 meta   [3 the value, staged: a large argument would block the server]
--       or the meta alone, while the value is on another node of a cluster: then nothing is stored. script.go names the
--       keys.
-- ARGV  1 owner   2 fence (8 bytes)   3 envelope ("" if staged)   4 ttl (ms; 0: notify, but store nothing)
--       5 channel prefix   6 head of the value notification   7 retry notification
--       8 largest value in a notification (bytes)   9 most waiters that receive the value   10 channel of changes
--       [11 digest of the envelope, if it is not in 3]
-- Returns {"stored", waiters}, also if it was only notified;
--         {"refused", waiters, error} if Redis did not store it, for example for lack of memory: the lease has ended,
--         the waiters were notified, and the old value is still there;
--         {"lost"}: the caller had no lease; nothing was stored.
local lease = read("HMGET", meta, "o", "u", "s") or {}
local owner = lease[1]
local ttl = ARGV[4]
local tainted = lease[2]
if tainted then
  ttl = "0" -- it was fetched during an Update
end

if owner ~= ARGV[1] then
  if staged then redis.call("UNLINK", staged) end
  if not value then return {"lost"} end
  local stored = read("GETRANGE", value, 24, 31)
  if stored == ARGV[2] then return {"stored", 0} end
  return {"lost"}
end

-- ACQUIRE notes that there are some. No other process stores any while the lease lasts.
local others, others_left = "", 0
if value and lease[3] and not tainted then
  others, others_left = other_segments(value, ARGV[11] or string.sub(ARGV[3], 49, 56), big_endian(ARGV[2], 1))
end
-- The value lasts as long as the last of its segments.
local longest_ttl = ttl
if others ~= "" then longest_ttl = string.format("%.0f", math.max(tonumber(ttl), others_left)) end

local refused
if not value then
  refused = "TRYAGAIN the value is on another node"
elseif ttl == "0" then
  -- The value is not stored, but an unusable one is deleted all the same.
  if others == "" or redis.pcall("SET", value, others, "PX", longest_ttl).err then redis.call("UNLINK", value) end
  if staged then redis.call("UNLINK", staged) end
elseif staged then
  refused = redis.pcall("RENAME", staged, value).err
  if not refused then
    -- pcall: a full Redis may refuse it. The other schemas then find no value.
    local length = others ~= "" and redis.pcall("SETRANGE", value, redis.call("STRLEN", value), others)
    redis.call("PEXPIRE", value, type(length) == "number" and longest_ttl or ttl)
  end
else
  refused = redis.pcall("SET", value, ARGV[3] .. others, "PX", longest_ttl).err
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
