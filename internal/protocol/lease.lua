-- lease.lua: functions that read the lease, the fence and the write marks of a key. The scripts of loads begin with
-- this. Any of it may be forged: what is longer, later or more than fetchonce writes is ignored. See
-- docs/internals/design.md.
local longest = 60000 -- ms: the longest Lease of a Loader
local ahead = 5000000 -- µs: how far a fence may be ahead of the clock, after the clock was set back
local most_waiters = 512
local most_marks = 1000
local waiter_field = string.byte("w")

-- read returns a reply, or nil if the key has another type than expected. Any other error ends the script.
local function read(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= "table" or not reply.err then return reply end
  if string.find(reply.err, "WRONGTYPE", 1, true) then return nil end
  return redis.call(command, key, ...)
end

-- number returns a time or a fence; 0 if the text is neither.
local function number(text)
  if not text or #text > 16 or string.find(text, "%D") then return 0 end
  return tonumber(text) or 0
end

-- big_endian returns the number in count bytes of a string, 8 by default.
local function big_endian(bytes, first, count)
  local n = 0
  for i = first, first + (count or 8) - 1 do n = n * 256 + string.byte(bytes, i) end
  return n
end

-- later returns the higher of two fences; now is in µs. It ignores a fence that is too far ahead of the clock.
local function later(last, fence, now)
  if fence > last and fence <= now + ahead then return fence end
  return last
end

-- stored_fence returns the fence in the first bytes of a value, or 0.
local function stored_fence(head)
  if head and #head >= 32 and string.sub(head, 1, 2) == "fo" then return big_endian(head, 25) end
  return 0
end

-- registered returns the processes that wait for a lease. ACQUIRE registers at most most_waiters. If there are more,
-- they are forged: it returns none, and the waiters notice the end of the lease by their recheck timers.
local function registered(meta)
  local waiters = {}
  local count = read("HLEN", meta)
  if not count or count < 3 or count > most_waiters + 3 then return waiters end
  local fields = redis.call("HGETALL", meta)
  for i = 1, #fields, 2 do
    if string.byte(fields[i]) == waiter_field and #fields[i] <= 128 then
      waiters[#waiters + 1] = string.sub(fields[i], 2)
    end
  end
  return waiters
end

-- process returns the process in the name of an owner, or nil.
local function process(owner) return #owner <= 128 and string.match(owner, "^[^.]*") or nil end

-- marked returns when the last write mark ends, in ms, or 0 if there is none; now is in ms. If all marks have ended, or
-- the key has another type, it deletes the key. If there are more than most_marks, it reads none: the key counts as
-- marked.
local function marked(marks, now)
  local count = read("HLEN", marks)
  if count == 0 then return 0 end
  if count and count > most_marks then
    local left = redis.call("PTTL", marks)
    if left >= 0 and left <= longest then return now + left end
    redis.call("PEXPIRE", marks, longest)
    return now + longest
  end
  local last = 0
  for _, text in ipairs(count and redis.call("HVALS", marks) or {}) do
    local ends = number(text)
    if ends > now and ends <= now + longest then last = math.max(last, ends) end
  end
  if last == 0 then redis.call("UNLINK", marks) end
  return last
end
