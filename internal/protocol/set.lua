-- set.lua: store a value whatever else is going on. A lease on the key ends, its holder and the waiters are told.
-- The server stamps the value with its time and a fence of its own (see internal/envelope): only it knows both.
-- KEYS  1 value   2 meta   3 marks   [4 the value, staged]
-- ARGV  1 envelope before the stamp   2 envelope after the stamp ("" if staged)   3 ttl (ms)
--       4 channel prefix   5 message with the value, after its kind and fence   6 message "look again"
--       7 head of the message "lost"   8 largest value told (bytes)   9 most waiters that are told the value
--       10 channel of changes
-- Returns the fence.
if KEYS[4] and redis.call("EXISTS", KEYS[4]) == 0 then return redis.error_reply("ERR the staged value is not there") end
local meta = redis.pcall("HGETALL", KEYS[2])
if meta.err then meta = {} end
local owner
local last = 0
local waiters = {}
for i = 1, #meta, 2 do
  if meta[i] == "o" then
    owner = meta[i + 1]
  elseif meta[i] == "f" then
    last = tonumber(meta[i + 1]) or 0
    if not (last >= 0 and last < 9007199254740992) then last = 0 end -- not a fence of ours
  elseif string.byte(meta[i]) == 119 then -- w
    waiters[#waiters + 1] = string.sub(meta[i], 2)
  end
end

local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
if last > now + 86400000000 then last = 0 end -- nor is one that lies more than a day ahead
local head = redis.pcall("GETRANGE", KEYS[1], 0, 31)
if type(head) == "string" and #head == 32 and string.sub(head, 1, 2) == "fo" then
  local stored = 0
  for i = 25, 32 do stored = stored * 256 + string.byte(head, i) end
  if stored > last and stored < now + 86400000000 then last = stored end
end
local fence = now
if fence <= last then fence = last + 1 end

-- While somebody writes at the source, no value is kept for longer than the mark: if the writer dies, it goes with it.
local ttl = tonumber(ARGV[3])
local marks = redis.pcall("HVALS", KEYS[3])
if marks.err then marks = {} end
local left = 0
for _, ends in ipairs(marks) do left = math.max(left, (tonumber(ends) or 0) - math.floor(now / 1000)) end
if left > 0 then ttl = math.min(ttl, left) end
ttl = string.format("%.0f", ttl)

local function big_endian(n)
  local bytes = ""
  for _ = 1, 8 do
    bytes = string.char(n % 256) .. bytes
    n = math.floor(n / 256)
  end
  return bytes
end
local fence_bytes = big_endian(fence)
local stamp = big_endian(math.floor(now / 1000)) .. fence_bytes
local envelope = ""
if KEYS[4] then
  redis.call("SETRANGE", KEYS[4], 16, stamp)
  redis.call("RENAME", KEYS[4], KEYS[1])
  redis.call("PEXPIRE", KEYS[1], ttl)
else
  envelope = ARGV[1] .. stamp .. ARGV[2]
  redis.call("SET", KEYS[1], envelope, "PX", ttl)
end
redis.call("DEL", KEYS[2])

-- Near caches that cannot have the server's own word hear of the change from us. In a cluster a message goes to every node,
-- so it is only sent where somebody who wants it listens on this node too.
local listen = redis.pcall("PUBSUB", "NUMSUB", ARGV[10])
if listen.err or tonumber(listen[2]) > 0 then notify(ARGV[10], KEYS[1]) end

if owner then
  notify(ARGV[4] .. string.match(owner, "^[^.]*"), ARGV[7] .. owner)
end
if #waiters > 0 then
  local message = ARGV[6]
  if envelope ~= "" and #envelope <= tonumber(ARGV[8]) and #waiters <= tonumber(ARGV[9]) then
    message = "V" .. fence_bytes .. ARGV[5] .. envelope
  end
  for _, process in ipairs(waiters) do notify(ARGV[4] .. process, message) end
end
return answer(string.format("%.0f", fence))
