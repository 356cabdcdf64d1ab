-- lock.lua: the common part of the lock scripts. Each of them begins with lock_state.lua, its fast path if it has one,
-- and this.
-- KEYS  1 lock: a string: "lock <f>", and for each holder " <owner> <fence> <end>/<lease>" (ms). f is the first fence
--         of the last lease
--       2 queue: a sorted set: the owners that wait, by ticket. For each it also has "+<owner>", by the time (ms) until
--         which the owner counts as waiting. That score is negative, so it is no ticket.
--       While a slot of a cluster moves, the lock alone: the queue may be on the other node. See tryagain.go.
-- ARGV  1 owner   2 lease + remembered (ms): how long the key of the lock lasts   3 slots
-- A full Redis (maxmemory, noeviction) refuses a SET or ZADD, unless the script has written before with a command
-- that needs no memory, as PEXPIRE. It may refuse a new lock and a new waiter. It may not refuse what renews, releases
-- or hands off a lease.
-- An end is a time by this server's clock. The string of a semaphore has several; a key in Redis has one TTL.
-- All of this may be forged. The script limits every end that it reads, and every loop: see "A forged lock ends" in
-- docs/internals/design.md.
local time = redis.call("TIME")
local clock = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(clock / 1000)
local lease = tonumber(ARGV[2]) - remembered
local slots = tonumber(ARGV[3])

-- limit makes a forged key expire.
local function limit(key, ms)
  local left = redis.call("PTTL", key)
  if left == -1 or left > ms then redis.call("PEXPIRE", key, ms) end
end

local fences = {} -- of the holders, by owner
local ends = {}
local lengths = {} -- of their leases
local holders = 0
local last, rest

local foreign = state.err
if not foreign and state ~= "" then
  last, rest = string.match(state, "^lock (%d+)(.*)$")
  if not last or #state > longest_state then foreign = "WRONGTYPE the key of a lock holds a string that is none" end
end
if foreign then
  limit(KEYS[1], lease)
  return redis.error_reply(foreign)
end
if last then
  if (tonumber(last) or math.huge) > clock + fence_ahead then last = "0" end -- it is forged: see grant
  for owner, fence, stop, length in string.gmatch(rest, " (%S+) (%d+) (%d+)/?(%d*)") do
    -- Another process may have a longer lease than this one. It counts up to longest_lease.
    length = math.max(lease, math.min(tonumber(length) or 0, longest_lease))
    stop = math.min(tonumber(stop) or 0, now + length)
    if stop > now then
      if not fences[owner] then holders = holders + 1 end
      fences[owner], ends[owner], lengths[owner] = fence, stop, length
    end
  end
end

-- A queue of another type is unreachable, too, and so is one of more than most_waiters, which is forged.
local queue, waiters = KEYS[2], 0
if queue then
  waiters = redis.pcall("ZCOUNT", queue, "(0", "+inf")
  if type(waiters) == "table" or waiters > most_waiters then queue, waiters = nil, 0 end
  if waiters == 0 then limit(KEYS[2], waiter_lasts) end
end

-- expiry returns the member of the queue whose score says until when an owner counts as waiting. With it a release
-- passes over a waiter that died more than waiter_lasts ago. Without it such a hand-off costs the other waiters 250 ms
-- to one second.
local function expiry(owner) return "+" .. owner end

-- grant makes owner a holder, with a new fence that is higher than the last one. The clock may have been set back, so
-- the last fence may be up to fence_ahead above it. The key of a free lock lasts longer than that: when it ends, the
-- clock is above every fence, even if the last one was forged.
local function grant(owner, length)
  local past = tonumber(last or "0")
  last = string.format("%.0f", math.max(clock, past + fences_per_lease)) -- tostring would write 1.795e+15
  if not fences[owner] then holders = holders + 1 end
  fences[owner], ends[owner], lengths[owner] = last, now + length, length
end

-- waits reports whether the head of the queue is a waiter that has polled in time.
local function waits(head)
  if #head > 64 or not string.match(head, "^%w+%.%w+$") then return false end
  local stop = -(tonumber(redis.call("ZSCORE", queue, expiry(head)) or "") or 0)
  return stop > now and stop < now + waiter_lasts + clock_back
end

-- leaving is the owner whose lease this script releases.
local leaving

-- settle grants free slots to waiters, the longest first, and notifies them. An owner that received a lease while the
-- queue was unreachable may still be in it. A hand-off to that owner would shorten its lease, or undo its release.
local function settle()
  while holders < slots and waiters > 0 do
    local head = redis.call("ZRANGEBYSCORE", queue, "(0", "+inf", "LIMIT", 0, 1)[1]
    if not head then return end
    local alive = waits(head) and not fences[head] and head ~= leaving
    redis.call("ZREM", queue, head, expiry(head))
    if alive then
      grant(head, confirmed_within)
      if head ~= ARGV[1] then
        -- The channel has the prefix of the key. If the server refuses PUBLISH, the waiter still has the lock, and
        -- polls by its recheck timer.
        local channel = string.match(KEYS[1], "^([^{]*):l:{") .. ":b:" .. string.match(head, "^[^.]*")
        notify(channel, "G" .. string.rep("\0", 8) .. string.char(#head) .. head)
      end
    end
  end
end

-- drop removes a holder.
local function drop(owner)
  if not fences[owner] then return end
  fences[owner], ends[owner] = nil, nil
  holders = holders - 1
end

-- finish writes the lock. The key lasts longer than the last lease, so that fences rise. With force, a full Redis does
-- not refuse it.
local function finish(force)
  if not last then return end
  local parts, longest = {"lock", last}, now
  for owner, stop in pairs(ends) do
    parts[#parts + 1] = owner .. " " .. fences[owner] .. " " .. string.format("%.0f/%.0f", stop, lengths[owner])
    longest = math.max(longest, stop)
  end
  local text, ms = table.concat(parts, " "), longest - now + remembered
  if force then
    if not redis.pcall("SET", KEYS[1], text, "PX", ms).err then return end
    redis.call("PEXPIRE", KEYS[1], ms)
  end
  redis.call("SET", KEYS[1], text, "PX", ms)
end
