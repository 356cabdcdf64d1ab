-- lock_acquire.lua: become a holder of a lock, or wait in its queue; and give another lease back in the same step.
-- An owner that was handed the lease confirms it by sending this again; one that waits stays in the queue by it.
-- Sent twice with the same owner, it answers the same lease, or the same place in the queue.
-- ARGV  4 "wait", the default; or "try": do not join the queue   5 the ticket from the last answer, if there is one, or "0"
--       6 owner of the lease to give back, if there is one
-- Returns {"leased", returned, fence, handed}: handed is 1 if the lease was ours before we asked;
--         {"wait", returned, ticket, ms}: the next lease ends in so long, if it is not renewed;
--         or what lock_free.lua does.
--         returned is 1 if the other lease was still there. Sent twice, the second request finds it gone and answers 0.
local owner = ARGV[1]
local returned = 0
if ARGV[6] then
  if fences[ARGV[6]] then returned = 1 end
  drop(ARGV[6])
end

local handed = 0
local ticket = 0
if fences[owner] then
  handed = 1
elseif ARGV[4] == "try" then
  settle() -- those who wait come first
  if holders < slots then grant(owner, lease) end
elseif not KEYS[2] then
  ticket = tonumber(ARGV[5] or "0")
  if holders < slots and not ARGV[6] then grant(owner, lease) end -- who gives a lease back lets others poll first
elseif holders < slots and redis.call("EXISTS", KEYS[2]) == 0 then
  grant(owner, lease)
else
  local place = redis.call("ZSCORE", KEYS[2], owner)
  if place or returned == 1 then redis.call("PEXPIRE", KEYS[2], 3000) end -- a full Redis then allows the rest
  ticket = tonumber(place or ARGV[5] or "0")
  if ticket == 0 then
    local tail = redis.call("ZREVRANGE", KEYS[2], 0, 0, "WITHSCORES")
    ticket = math.max(clock, (tonumber(tail[2] or "0") or 0) + 1)
  end
  if not place then redis.call("ZADD", KEYS[2], string.format("%.0f", ticket), owner) end
  redis.call("HSET", KEYS[3], owner, string.format("%.0f", now + 3000)) -- it is to look again within that, or is passed over
  redis.call("PEXPIRE", KEYS[2], 3000)
  redis.call("PEXPIRE", KEYS[3], 3000)
end
settle()
if fences[owner] then ends[owner] = now + lease end
finish(handed == 1 or returned == 1)

if fences[owner] then return answer({"leased", returned, fences[owner], handed}) end
local left = lease
if not KEYS[2] then left = math.min(left, 50) end -- no message comes from a queue that is out of reach
for _, stop in pairs(ends) do left = math.min(left, stop - now) end
return answer({"wait", returned, string.format("%.0f", ticket), left})
