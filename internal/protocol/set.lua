-- set.lua: store a value. A lease on the key ends, and its holder and waiters are notified.
-- The script stamps the value with the server's time and a new fence; see internal/envelope.
-- KEYS  1 value   2 meta   3 marks   [4 the value, staged]
-- ARGV  1 envelope before the stamp   2 envelope after the stamp ("" if staged)   3 ttl (ms)
--       4 channel prefix   5 value notification, after its kind and fence   6 retry notification
--       7 head of the lost notification   8 largest value in a notification (bytes)
--       9 most waiters that receive the value   10 channel of changes
-- Returns the fence.
if KEYS[4] and redis.call("EXISTS", KEYS[4]) == 0 then return redis.error_reply("ERR the staged value is not there") end
local lease = read("HMGET", KEYS[2], "o", "f") or {}
local owner = lease[1]
local waiters = registered(KEYS[2])

local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local last = later(0, number(lease[2]), now)
last = later(last, stored_fence(read("GETRANGE", KEYS[1], 0, 31)), now)
local fence = now
if fence <= last then fence = last + 1 end

-- During an Update, the value ends with the write mark at the latest: the writer may die.
local ttl = tonumber(ARGV[3])
local left = marked(KEYS[3], math.floor(now / 1000)) - math.floor(now / 1000)
if left > 0 then ttl = math.min(ttl, left) end
ttl = string.format("%.0f", ttl)

local function bytes_of(n)
  local bytes = ""
  for _ = 1, 8 do
    bytes = string.char(n % 256) .. bytes
    n = math.floor(n / 256)
  end
  return bytes
end
local fence_bytes = bytes_of(fence)
local stamp = bytes_of(math.floor(now / 1000)) .. fence_bytes
local envelope = ""
if KEYS[4] then
  redis.call("SETRANGE", KEYS[4], 16, stamp)
  redis.call("RENAME", KEYS[4], KEYS[1])
  redis.call("PEXPIRE", KEYS[1], ttl)
else
  envelope = ARGV[1] .. stamp .. ARGV[2]
  redis.call("SET", KEYS[1], envelope, "PX", ttl)
end
redis.call("UNLINK", KEYS[2])

announce(ARGV[10], KEYS[1])
local holder = owner and process(owner)
if holder then notify(ARGV[4] .. holder, ARGV[7] .. owner) end
if #waiters > 0 then
  local message = ARGV[6]
  if envelope ~= "" and #envelope <= tonumber(ARGV[8]) and #waiters <= tonumber(ARGV[9]) then
    message = "V" .. fence_bytes .. ARGV[5] .. envelope
  end
  for _, process in ipairs(waiters) do notify(ARGV[4] .. process, message) end
end
return answer(string.format("%.0f", fence))
