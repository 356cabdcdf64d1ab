-- lock.lua: what the lock scripts have in common. It stands before each of them, after its quick way if it has one.
-- KEYS  1 lock: a string: "lock <f>", and for each holder " <owner> <fence> <end>" (ms). f is the first fence of the last lease
--       2 queue: a sorted set: the owners that wait, by ticket
--       3 alive: a hash: until when (ms) each of those is believed to wait
--       While a slot of a cluster moves, the lock alone: the queue may be on the other node. See apart.go.
-- ARGV  1 owner   2 lease + 1000 (ms): so long the lock is remembered   3 slots
-- A lease has 16 fences, one for each turn inside its process; a free lock is remembered for 1000 ms; a hand-over waits for 250 ms
-- to be confirmed, however long the lease of the process that releases is. These are literals, as every argument costs as much as a quarter of a command.
-- A full Redis (maxmemory, noeviction) refuses a SET, ZADD or HSET, unless the script has written before with a command that needs no
-- memory, as PEXPIRE. It may refuse a new lock and a new waiter. It may not refuse what keeps, gives back or hands over a lease.
-- An end is a time of this server's clock: the string of a semaphore has several, and Redis gives a key only one.
local time = redis.call("TIME")
local clock = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(clock / 1000)
local lease = tonumber(ARGV[2]) - 1000
local slots = tonumber(ARGV[3])

local fences = {} -- of the holders, by owner
local ends = {}
local holders = 0
local last, rest

if state then
  last, rest = string.match(state, "^lock (%d+)(.*)$")
  if not last then return redis.error_reply("WRONGTYPE the key of a lock holds a string that is none") end
  for owner, fence, stop in string.gmatch(rest, " (%S+) (%d+) (%d+)") do
    if tonumber(stop) > now then
      fences[owner], ends[owner] = fence, tonumber(stop)
      holders = holders + 1
    end
  end
end

-- grant makes owner a holder.
local function grant(owner, length)
  local past = tonumber(last or "0")
  if past > clock + 86400000000 then past = 0 end -- more than a day ahead: not a fence of ours
  last = string.format("%.0f", math.max(clock, past + 16)) -- tostring would write 1.795e+15
  fences[owner], ends[owner] = last, now + length
  holders = holders + 1
end

-- settle gives what is free to those who wait, the longest first, and tells them.
local function settle()
  if not KEYS[2] then return end
  while holders < slots do
    local head = redis.call("ZRANGE", KEYS[2], 0, 0)[1]
    if not head then return end
    local alive = redis.call("HGET", KEYS[3], head)
    redis.call("ZREM", KEYS[2], head)
    redis.call("HDEL", KEYS[3], head)
    if alive and tonumber(alive) > now then
      grant(head, 250)
      if head ~= ARGV[1] then
        -- The channel's name begins as the key's does. Without the right to PUBLISH the hand-over stands, and is found by a timer.
        local channel = string.match(KEYS[1], "^([^{]*):l:{") .. ":b:" .. string.match(head, "^[^.]*")
        notify(channel, "G" .. string.rep("\0", 8) .. string.char(#head) .. head)
      end
    end
  end
end

local function drop(owner)
  if not fences[owner] then return end
  fences[owner], ends[owner] = nil, nil
  holders = holders - 1
end

-- finish writes the lock. It ends 1000 ms after the last lease, so that fences rise. With force it does so in a full Redis.
local function finish(force)
  if not last then return end
  local parts, longest = {"lock", last}, now
  for owner, stop in pairs(ends) do
    parts[#parts + 1] = owner .. " " .. fences[owner] .. " " .. string.format("%.0f", stop)
    longest = math.max(longest, stop)
  end
  local text, ms = table.concat(parts, " "), longest - now + 1000
  if force then
    if not redis.pcall("SET", KEYS[1], text, "PX", ms).err then return end
    redis.call("PEXPIRE", KEYS[1], ms)
  end
  redis.call("SET", KEYS[1], text, "PX", ms)
end
