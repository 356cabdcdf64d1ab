-- invalidate.lua: delete the value of a key and end its lease.
-- A DEL of both keys by any client is as safe, but sends no notifications.
-- With marks, it also sets a write mark or removes it. Sent again, it renews the mark. It then deletes nothing, unless
-- the mark had ended: no value was stored since.
-- KEYS  1 value   2 meta   [3 marks]
--       or one of them alone, while they are on two nodes of a cluster: see tryagain.go. script.go names the keys.
-- ARGV  1 channel prefix   2 retry notification for the waiters   3 head of the lost notification for the holder
--       4 channel of changes   [5 mark   6 its length (ms; 0: remove it)]
-- Returns how many values there were: 0 or 1.

-- delete_value and end_lease invalidate the key. They cannot fail, whatever the keys hold.
local function delete_value()
  local n = redis.call("UNLINK", value)
  announce(ARGV[4], value)
  return n
end

local function end_lease()
  local owner = (read("HMGET", meta, "o") or {})[1]
  local waiters = registered(meta)
  redis.call("UNLINK", meta)
  for _, process in ipairs(waiters) do notify(ARGV[1] .. process, ARGV[2]) end
  local holder = owner and process(owner)
  if holder then notify(ARGV[1] .. holder, ARGV[3] .. owner) end
end

-- sweep removes marks that have ended, such as those of dead writers, and marks that last too long: they are forged.
local function sweep(now)
  local fields = redis.call("HGETALL", marks)
  for i = 1, #fields, 2 do
    local ends = number(fields[i + 1])
    if ends <= now or ends > now + longest then redis.call("HDEL", marks, fields[i]) end
  end
end

local function set_mark(now, lasts)
  redis.call("HDEL", marks, ARGV[5]) -- a full Redis then allows the HSET
  sweep(now)
  redis.call("HSET", marks, ARGV[5], string.format("%.0f", now + lasts))
  local left = redis.call("PTTL", marks)
  if left < lasts or left > longest then redis.call("PEXPIRE", marks, left < lasts and lasts or longest) end
end

local lasts = tonumber(ARGV[6] or "0")
local now, ends
longest = math.max(longest, lasts)
if marks then
  local count = read("HLEN", marks)
  -- It is no hash, or has far more marks than one key has Updates.
  if not count or count > most_marks then redis.call("UNLINK", marks) end
  if lasts > 0 then
    local time = redis.call("TIME")
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    ends = number(redis.call("HGET", marks, ARGV[5]))
    if ends > now + lasts then ends = 0 end
  end
end

local n = 0
if ends and ends > now then
  set_mark(now, lasts) -- this renews it
  return 0
end
if value then n = delete_value() end
if meta then end_lease() end
if marks and lasts > 0 then
  set_mark(now, lasts)
elseif marks then
  redis.call("HDEL", marks, ARGV[5])
end
return answer(n)
