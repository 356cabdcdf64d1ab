-- acquire.lua: become the one who fetches a key, or learn why not.
-- The value is looked for once more in the same step, so nobody who stored it just now is missed.
-- Sent twice with the same owner, it answers the same lease.
-- KEYS  1 value   2 meta   3 marks
-- ARGV  1 owner   2 lease (ms)   3 process
--       4 "miss"; "force" to pass over a value that cannot be used, "stale" over one that is to be refreshed
--       5 most waiters   6 largest value answered (bytes)   7 how the value to pass over begins ("" if it is no string)
-- Returns {"value", bytes}, or {"large"} if it is too long for an answer: GET it;
--         {"leased", fence, now (µs)} if we are the one;
--         {"wait", fence, ms, now (µs)} if another is, for at most so long: this process is registered for the message;
--         {"failed", failure, ms} if the last fetch failed, and that is shared for so long.
local force = ARGV[4] ~= "miss"
local there = 3
if force then
  -- Only that one value is passed over: one that has come since is news.
  local head = redis.pcall("GETRANGE", KEYS[1], 0, 55)
  force = (type(head) == "string" and head or "") == ARGV[7]
else
  there = redis.call("EXISTS", KEYS[1], KEYS[2], KEYS[3]) -- most often there is nothing to look at
end
local meta = {}
if there > 0 then meta = redis.pcall("HMGET", KEYS[2], "o", "f", "e", "b") end
if not force and there > 0 and not (there == 1 and meta[1]) then
  local length = redis.pcall("STRLEN", KEYS[1])
  if type(length) == "number" and length > 0 then
    if length > tonumber(ARGV[6]) then return {"large"} end
    return {"value", redis.call("GET", KEYS[1])}
  end
end

local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_text = time[1] .. string.sub("000000", #time[2] + 1) .. time[2] -- tostring would write 1.795e+15

if meta.err then
  -- Somebody else's data where our lease belongs. It is not ours to delete, but it may block the key no longer than a lease.
  local left = redis.call("PTTL", KEYS[2])
  if left < 0 or left > tonumber(ARGV[2]) then
    redis.call("PEXPIRE", KEYS[2], ARGV[2])
    left = tonumber(ARGV[2])
  end
  return {"wait", "0", left, now_text}
end
local owner, failure = meta[1], meta[3]
if meta[4] and ARGV[4] ~= "stale" then failure = false end -- a pause for those who have an old value
local last = tonumber(meta[2] or "") or 0
if not (last >= 0 and last < 9007199254740992) then last = 0 end -- not a fence of ours

if owner == ARGV[1] then return {"leased", string.format("%.0f", last), "0"} end
if owner or failure then
  local left = redis.call("PTTL", KEYS[2])
  if left < 0 then
    -- We never write a lease without an end, so this one was written by somebody else: give it one.
    redis.call("PEXPIRE", KEYS[2], ARGV[2])
    left = tonumber(ARGV[2])
  end
  if not owner then return {"failed", failure, left} end
  -- pcall: a full Redis refuses the HSET. The process then waits by its recheck timer alone.
  if redis.call("HLEN", KEYS[2]) < tonumber(ARGV[5]) then redis.pcall("HSET", KEYS[2], "w" .. ARGV[3], "1") end
  return {"wait", string.format("%.0f", last), left, now_text}
end

if force then
  -- The unusable value may be a newer build's: stay above its fence. One that lies more than a day ahead is not a fence.
  local head = redis.pcall("GETRANGE", KEYS[1], 0, 31)
  if type(head) == "string" and #head == 32 and string.sub(head, 1, 2) == "fo" then
    local stored = 0
    for i = 25, 32 do stored = stored * 256 + string.byte(head, i) end
    if stored > last and stored < now + 86400000000 then last = stored end
  end
end
if last > now + 86400000000 then last = 0 end
local new = now_text
if now <= last then new = string.format("%.0f", last + 1) end -- the clock stepped back
redis.call("HSET", KEYS[2], "o", ARGV[1], "f", new)
if there > 0 then
  local marks = redis.pcall("HVALS", KEYS[3])
  if not marks.err then
    for _, ends in ipairs(marks) do
      -- Somebody writes at the source: what is read there now may be old when it comes to be stored.
      if (tonumber(ends) or 0) * 1000 > now then redis.call("HSET", KEYS[2], "u", "1") end
    end
  end
end
redis.call("PEXPIRE", KEYS[2], ARGV[2])
return {"leased", new, now_text}
