-- lock.lua: what the lock scripts have in common; it stands before each of them.
-- KEYS  1 lock: a hash: f the last fence, b the first since the hash was made, and for each holder its owner: "<fence> <end>" (ms)
--       2 queue: a sorted set: the owners that wait, by ticket
--       3 alive: a hash: until when (ms) each of those is believed to wait
-- ARGV  1 owner   2 slots   3 channel prefix   4 head of the message "granted"
--       5 grace (ms): how long a hand-over waits to be confirmed   6 fences of a grant   7 linger (ms)
--       8 lease (ms)
-- An end is a time of this server's clock: the hash of a semaphore has several, and Redis gives a key only one.
local time = redis.call("TIME")
local clock = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(clock / 1000)
local slots = tonumber(ARGV[2])

local fences = {} -- of the holders, by owner
local ends = {}
local holders = 0
local last = 0
local born

local fields = redis.call("HGETALL", KEYS[1])
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == "f" then
    last = tonumber(value) or 0
    if last > clock + 86400000000 then last = 0 end -- more than a day ahead: not a fence of ours
  elseif name == "b" then
    born = value
  else
    local fence, stop = string.match(value, "^(%d+) (%d+)$")
    if fence and tonumber(stop) > now then
      fences[name], ends[name] = fence, tonumber(stop)
      holders = holders + 1
    else
      redis.call("HDEL", KEYS[1], name)
    end
  end
end

local function hold(owner, length)
  if ends[owner] == now + length then return end -- since this moment
  ends[owner] = now + length
  redis.call("HSET", KEYS[1], owner, fences[owner] .. " " .. string.format("%.0f", ends[owner]))
end

-- grant makes owner a holder. It has a row of fences, one for each turn inside its process.
local function grant(owner, length)
  local fence = math.max(clock, last + 1)
  last = fence + tonumber(ARGV[6]) - 1
  fences[owner] = string.format("%.0f", fence) -- tostring would write 1.795e+15
  holders = holders + 1
  born = born or fences[owner]
  redis.call("HSET", KEYS[1], "b", born, "f", string.format("%.0f", last))
  hold(owner, length)
end

-- settle gives what is free to those who wait, the longest first, and tells them.
local function settle()
  while holders < slots do
    local head = redis.call("ZRANGE", KEYS[2], 0, 0)[1]
    if not head then return end
    local alive = redis.call("HGET", KEYS[3], head)
    redis.call("ZREM", KEYS[2], head)
    redis.call("HDEL", KEYS[3], head)
    if alive and tonumber(alive) > now then
      grant(head, tonumber(ARGV[5]))
      if head ~= ARGV[1] then
        -- pcall: without the right to PUBLISH the hand-over stands, and is found by a timer.
        redis.pcall("PUBLISH", ARGV[3] .. string.match(head, "^[^.]*"), ARGV[4] .. string.char(#head) .. head)
      end
    end
  end
end

local function drop(owner)
  if not fences[owner] then return end
  redis.call("HDEL", KEYS[1], owner)
  fences[owner], ends[owner] = nil, nil
  holders = holders - 1
end

-- finish gives the lock its end: a little after the last lease's, so that fences rise and what is sent twice is known again.
local function finish()
  local longest = now
  for _, stop in pairs(ends) do longest = math.max(longest, stop) end
  redis.call("PEXPIRE", KEYS[1], longest - now + tonumber(ARGV[7]))
end
