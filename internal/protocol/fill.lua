-- fill.lua: store what was fetched, end the lease, wake the waiters; only while the lease is still ours.
-- Sent twice, the second time finds the value with our fence and answers the same.
-- KEYS  1 value   2 meta   [3 the value, staged: a large one as an argument would hold up the server]
--       or the meta alone, while the value is on another node of a cluster: then nothing is stored. script.go names the keys.
-- ARGV  1 owner   2 fence (8 bytes)   3 envelope ("" if staged)   4 ttl (ms; 0: tell it, but store nothing)
--       5 channel prefix   6 head of the message with the value   7 message "look again"
--       8 largest value told (bytes)   9 most waiters that are told the value   10 channel of changes
-- Returns {"stored", waiters}, also where it was only told;
--         {"refused", waiters, error} if Redis did not store it, as a full one: the lease has ended and the waiters were notified all
--         the same, and the value from before is still there;
--         {"lost", bytes or false}: the lease was not ours; nothing was stored, and what is there now if it is small.
local lease = read("HMGET", meta, "o", "u") or {}
local owner = lease[1]
local ttl = ARGV[4]
if lease[2] then
  ttl = "0" -- it was fetched while somebody wrote at the source
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
  -- What cannot be kept may not leave an unusable value behind either.
  redis.call("UNLINK", value)
  if staged then redis.call("UNLINK", staged) end
elseif staged then
  refused = redis.pcall("RENAME", staged, value).err
  if not refused then redis.call("PEXPIRE", value, ttl) end
else
  refused = redis.pcall("SET", value, ARGV[3], "PX", ttl).err
end
local waiters = registered(meta)
redis.call("UNLINK", meta) -- before the messages: who is woken finds the lease free

-- Near caches that cannot have the server's own word hear of the change from us. In a cluster a message goes to every node,
-- so it is only sent where somebody who wants it listens on this node too.
if value then
  local listen = redis.pcall("PUBSUB", "NUMSUB", ARGV[10])
  if listen.err or tonumber(listen[2]) > 0 then notify(ARGV[10], value) end
end

if #waiters > 0 then
  local message = ARGV[7]
  if ARGV[3] ~= "" and #ARGV[3] <= tonumber(ARGV[8]) and #waiters <= tonumber(ARGV[9]) then
    message = ARGV[6] .. ARGV[3]
  end
  for _, process in ipairs(waiters) do notify(ARGV[5] .. process, message) end
end
if refused then return answer({"refused", #waiters, refused}) end
return answer({"stored", #waiters})
