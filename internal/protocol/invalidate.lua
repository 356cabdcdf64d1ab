-- invalidate.lua: forget a key: its value, and the right of whoever fetches it now to store one.
-- A plain DEL of both keys by anybody is just as safe; only the messages are missing then.
-- KEYS  1 value   2 meta
-- ARGV  1 channel prefix   2 message "look again", for the waiters   3 head of the message "lost", for the holder
-- Returns how many values there were: 0 or 1.
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
