-- acquire.lua: take the lease of a key, or answer why not.
-- It reads the value in the same step, so it finds a value that was stored a moment ago.
-- Sent twice with the same owner, it answers the same lease.
-- KEYS  1 value   2 meta   3 marks
-- ARGV  1 owner   2 lease (ms)   3 process
--       4 "miss"; "force" to pass over a value that is unusable or another schema's, "stale" over one to refresh
--       5 most waiters, as a number of fields of the lease   6 largest value answered (bytes)
--       7 head of the value to pass over ("" if it is no string)   8 longest failure that counts (ms; 0: none does)
--       [9 when the caller's segment of it ended (ms) by the caller's clock, or 0: the server's clock decides
--       10 "1" if it has segments of other schemas]
-- Returns {"value", bytes}, or {"large"} if it is too long for an answer: send GET; with 9, now (µs) follows;
--         {"leased", fence, now (µs)} if the caller has the lease;
--         {"wait", fence, ms, now (µs)} if another owner has it, for at most that long: this process is registered as a
--         waiter;
--         {"failed", failure, ms} if the last fetch failed; the failure is shared for that long.
local now, now_text
local function clock()
  local time = redis.call("TIME")
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  now_text = time[1] .. string.sub("000000", #time[2] + 1) .. time[2] -- tostring would write 1.795e+15
end

longest = math.max(longest, tonumber(ARGV[2]))
local force = ARGV[4] ~= "miss"
local there = 3 -- of the keys, as far as it is known
local head
local foreign = false -- the value is of another type
if force then
  -- Only that value is passed over, not one that was stored since: a new segment comes first.
  head = read("GETRANGE", KEYS[1], 0, 55)
  foreign, head = not head, head or ""
  force = head == ARGV[7]
  if force and ARGV[9] and ARGV[9] ~= "0" then
    clock()
    force = tonumber(ARGV[9]) < now / 1000
  end
else
  there = redis.call("EXISTS", KEYS[1], KEYS[2], KEYS[3]) -- most often none: that saves the reads below
end
local lease = {}
if there > 0 then lease = read("HMGET", KEYS[2], "o", "f", "b") end
if not force and there > 0 and not (there == 1 and lease and lease[1]) then
  local length = read("STRLEN", KEYS[1])
  foreign = foreign or not length
  if length and length > 0 then
    if length > tonumber(ARGV[6]) then return {"large", now_text} end
    return {"value", redis.call("GET", KEYS[1]), now_text}
  end
end
if not now then clock() end

if not lease then
  -- The key of the lease holds foreign data. It is not deleted, but it blocks the key no longer than a lease.
  local left = redis.call("PTTL", KEYS[2])
  if left < 0 or left > tonumber(ARGV[2]) then
    redis.call("PEXPIRE", KEYS[2], ARGV[2])
    left = tonumber(ARGV[2])
  end
  return {"wait", "0", left, now_text}
end
local owner = lease[1]
local last = later(0, number(lease[2]), now)

if owner == ARGV[1] and last > now - longest * 1000 then return {"leased", string.format("%.0f", last), "0"} end
if owner and owner ~= ARGV[1] then
  local left = redis.call("PTTL", KEYS[2])
  if left < 0 or left > longest then
    -- No lease of fetchonce lasts that long: it is forged.
    redis.call("PEXPIRE", KEYS[2], ARGV[2])
    left = tonumber(ARGV[2])
  end
  -- pcall: a full Redis refuses the HSET. The process then waits by its recheck timer alone.
  if redis.call("HLEN", KEYS[2]) < tonumber(ARGV[5]) then redis.pcall("HSET", KEYS[2], "w" .. ARGV[3], "1") end
  return {"wait", string.format("%.0f", last), left, now_text}
end

local share = tonumber(ARGV[8])
if lease[3] and ARGV[4] ~= "stale" then share = 0 end -- the failure is for callers with a stale value
if lease[2] and share > 0 then
  local length = redis.call("HSTRLEN", KEYS[2], "e")
  if length > 0 and length <= 1025 then -- a class, and a text of 1 KiB
    local left = redis.call("PTTL", KEYS[2])
    if left < 0 or left > share then
      redis.call("PEXPIRE", KEYS[2], ARGV[8])
      left = share
    end
    return {"failed", redis.call("HGET", KEYS[2], "e"), left}
  end
end

-- The value may have a higher fence than the last lease. The first segment has the highest one.
if force then last = later(last, stored_fence(head), now) end
if last > now + 1000 then
  -- The clock was set back, or the fence is forged. The caller waits until the clock is above it.
  return {"wait", "0", math.ceil((last - now) / 1000), now_text}
end
local new = now_text
if now <= last then new = string.format("%.0f", last + 1) end
if foreign then redis.call("UNLINK", KEYS[1]) end
if there > 0 then redis.call("UNLINK", KEYS[2]) end -- a failure that does not count, or forged fields
redis.call("HSET", KEYS[2], "o", ARGV[1], "f", new)
if force and ARGV[10] then redis.call("HSET", KEYS[2], "s", "1") end
if there > 0 and marked(KEYS[3], math.floor(now / 1000)) > 0 then
  -- An Update is running: a value that is read from the source now may be stale when it is stored.
  redis.call("HSET", KEYS[2], "u", "1")
end
redis.call("PEXPIRE", KEYS[2], ARGV[2])
return {"leased", new, now_text}
