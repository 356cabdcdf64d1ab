-- invalidate.lua: forget a key: its value, and the right of whoever fetches it now to store one.
-- A plain DEL of both keys by anybody is just as safe; only the messages are missing then.
-- With marks it also marks the key as being written at its source, or takes a mark off. Sent again, a mark is renewed:
-- nothing was stored since it was set, so nothing more is forgotten, unless it had ended meanwhile.
-- KEYS  1 value   2 meta   [3 marks]
--       or one of them alone, while they are on two nodes of a cluster: see apart.go. script.go names the keys.
-- ARGV  1 channel prefix   2 message "look again", for the waiters   3 head of the message "lost", for the holder
--       4 channel of changes   [5 the mark   6 how long it lasts (ms; 0: take it off)]
-- Returns how many values there were: 0 or 1.
if marks and ARGV[6] == "0" then
  redis.call("HDEL", marks, ARGV[5])
elseif marks then
  local time = redis.call("TIME")
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local ends = tonumber(redis.call("HGET", marks, ARGV[5]) or "0") or 0
  redis.call("HDEL", marks, ARGV[5]) -- a full Redis then allows the HSET
  redis.call("HSET", marks, ARGV[5], string.format("%.0f", now + tonumber(ARGV[6])))
  if redis.call("PTTL", marks) < tonumber(ARGV[6]) then redis.call("PEXPIRE", marks, ARGV[6]) end
  if ends > now then return 0 end
end

local n = 0
if value then
  n = redis.call("DEL", value)
  -- Near caches that cannot have the server's own word hear of the change from us. In a cluster a message goes to every node,
  -- so it is only sent where somebody who wants it listens on this node too.
  local listen = redis.pcall("PUBSUB", "NUMSUB", ARGV[4])
  if listen.err or tonumber(listen[2]) > 0 then notify(ARGV[4], value) end
end
if not meta then return answer(n) end

local fields = redis.pcall("HGETALL", meta)
redis.call("DEL", meta)
if fields.err then return answer(n) end
for i = 1, #fields, 2 do
  if string.byte(fields[i]) == 119 then
    notify(ARGV[1] .. string.sub(fields[i], 2), ARGV[2])
  elseif fields[i] == "o" then
    notify(ARGV[1] .. string.match(fields[i + 1], "^[^.]*"), ARGV[3] .. fields[i + 1])
  end
end
return answer(n)
