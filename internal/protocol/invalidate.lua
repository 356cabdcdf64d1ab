-- invalidate.lua: forget a key: its value, and the right of whoever fetches it now to store one.
-- A plain DEL of both keys by anybody is just as safe; only the messages are missing then.
-- With marks it also marks the key as being written at its source, or takes a mark off. Sent again, a mark is renewed:
-- nothing was stored since it was set, so nothing more is forgotten, unless it had ended meanwhile.
-- KEYS  1 value   2 meta   [3 marks]
-- ARGV  1 channel prefix   2 message "look again", for the waiters   3 head of the message "lost", for the holder
--       [4 the mark   5 how long it lasts (ms; 0: take it off)]
-- Returns how many values there were: 0 or 1.
if KEYS[3] and ARGV[5] == "0" then
  redis.call("HDEL", KEYS[3], ARGV[4])
elseif KEYS[3] then
  local time = redis.call("TIME")
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local ends = tonumber(redis.call("HGET", KEYS[3], ARGV[4]) or "0") or 0
  redis.call("HSET", KEYS[3], ARGV[4], string.format("%.0f", now + tonumber(ARGV[5])))
  if redis.call("PTTL", KEYS[3]) < tonumber(ARGV[5]) then redis.call("PEXPIRE", KEYS[3], ARGV[5]) end
  if ends > now then return 0 end
end

local meta = redis.pcall("HGETALL", KEYS[2])
local n = redis.call("DEL", KEYS[1])
redis.call("DEL", KEYS[2])
if meta.err then return n end
for i = 1, #meta, 2 do
  if string.byte(meta[i]) == 119 then
    redis.pcall("PUBLISH", ARGV[1] .. string.sub(meta[i], 2), ARGV[2])
  elseif meta[i] == "o" then
    redis.pcall("PUBLISH", ARGV[1] .. string.match(meta[i + 1], "^[^.]*"), ARGV[3] .. meta[i + 1])
  end
end
return n
