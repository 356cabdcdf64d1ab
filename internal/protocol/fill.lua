-- fill.lua: store what was fetched, end the lease, wake the waiters; only while the lease is still ours.
-- Sent twice, the second time finds the value with our fence and answers the same.
-- KEYS  1 value   2 meta   [3 the value, staged: a large one as an argument would hold up the server]
-- ARGV  1 owner   2 fence (8 bytes)   3 envelope ("" if staged)   4 ttl (ms; 0: tell it, but store nothing)
--       5 channel prefix   6 head of the message with the value   7 message "look again"
--       8 largest value told (bytes)   9 most waiters that are told the value   10 channel of changes
-- Returns {"stored", waiters} (also where it was only told), {"refused", waiters, error} if Redis refused to store it, as a full one does:
--         the lease has ended and the waiters were notified all the same, and the value from before is still there; or {"lost", bytes or false}: nothing was stored, and what is there now if it is small.
local meta = redis.pcall("HGETALL", KEYS[2])
local owner
local ttl = ARGV[4]
local waiters = {}
if not meta.err then
  for i = 1, #meta, 2 do
    if meta[i] == "o" then
      owner = meta[i + 1]
    elseif meta[i] == "u" then
      ttl = "0" -- it was fetched while somebody wrote at the source
    elseif string.byte(meta[i]) == 119 then -- w
      waiters[#waiters + 1] = string.sub(meta[i], 2)
    end
  end
end

if owner ~= ARGV[1] then
  if KEYS[3] then redis.call("DEL", KEYS[3]) end
  local stored = redis.pcall("GETRANGE", KEYS[1], 24, 31)
  if stored == ARGV[2] then return {"stored", 0} end
  local length = redis.pcall("STRLEN", KEYS[1])
  if type(length) == "number" and length > 0 and length <= tonumber(ARGV[8]) then
    return {"lost", redis.call("GET", KEYS[1])}
  end
  return {"lost", false}
end

local refused
if ttl == "0" then
  -- What cannot be kept may not leave an unusable value behind either.
  redis.call("DEL", KEYS[1])
  if KEYS[3] then redis.call("DEL", KEYS[3]) end
elseif KEYS[3] then
  refused = redis.pcall("RENAME", KEYS[3], KEYS[1]).err
  if not refused then redis.call("PEXPIRE", KEYS[1], ttl) end
else
  refused = redis.pcall("SET", KEYS[1], ARGV[3], "PX", ttl).err
end
redis.call("DEL", KEYS[2]) -- before the messages: who is woken finds the lease free

-- Near caches that cannot have the server's own word hear of the change from us. In a cluster a message goes to every node,
-- so it is only sent where somebody who wants it listens on this node too.
local listen = redis.pcall("PUBSUB", "NUMSUB", ARGV[10])
if listen.err or tonumber(listen[2]) > 0 then redis.pcall("PUBLISH", ARGV[10], KEYS[1]) end

if #waiters > 0 then
  local message = ARGV[7]
  if ARGV[3] ~= "" and #ARGV[3] <= tonumber(ARGV[8]) and #waiters <= tonumber(ARGV[9]) then
    message = ARGV[6] .. ARGV[3]
  end
  -- pcall: a user that may not PUBLISH must not undo what is stored. The waiters then find out by their timers.
  for _, process in ipairs(waiters) do redis.pcall("PUBLISH", ARGV[5] .. process, message) end
end
if refused then return {"refused", #waiters, refused} end
return {"stored", #waiters}
