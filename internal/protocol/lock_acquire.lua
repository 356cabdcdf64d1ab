-- lock_acquire.lua: take a lease of a lock, or wait in its queue. It can release another lease in the same step.
-- An owner that received the lease by a hand-off confirms it by sending this again. A waiter stays in the queue by
-- doing so.
-- Sent twice with the same owner, it answers the same lease with a higher fence, or the same place in the queue.
-- ARGV  4 "wait", the default; or "try": do not join the queue
--       5 the ticket from the last answer, if there is one, or "0"
--       6 owner of the lease to release, if there is one
-- Returns {"leased", released, fence, handed}: handed is 1 if the owner had the lease before;
--         {"wait", released, ticket, ms}: the next lease ends after that time, if it is not renewed;
--         or what lock_free.lua does.
--         released is 1 if the other lease was still there. Sent twice, the second request finds it gone and answers 0.
local owner = ARGV[1]
local released = 0
if ARGV[6] then
  if fences[ARGV[6]] then released = 1 end
  leaving = ARGV[6]
  drop(leaving)
end

-- isTicket reports whether a score may be a ticket: a time that is past.
local function isTicket(score) return score and score > 0 and score < clock + clock_back * 1000 end

local handed = 0
local ticket = 0
if fences[owner] then
  handed = 1
  grant(owner, lease) -- with a fence above those granted since the hand-off
elseif ARGV[4] == "try" then
  settle() -- waiters come first
  if holders < slots then grant(owner, lease) end
elseif not queue then
  ticket = tonumber(ARGV[5] or "0")
  -- An owner that releases a lease lets others poll first.
  if holders < slots and not ARGV[6] then grant(owner, lease) end
elseif holders < slots and waiters == 0 then
  grant(owner, lease)
else
  local place = tonumber(redis.call("ZSCORE", queue, owner) or "")
  if not isTicket(place) then place = nil end
  if place or released == 1 then redis.call("PEXPIRE", queue, waiter_lasts) end -- a full Redis then allows the rest
  ticket = place or tonumber(ARGV[5] or "0")
  if ticket == 0 then
    local tail = tonumber(redis.call("ZREVRANGE", queue, 0, 0, "WITHSCORES")[2] or "")
    ticket = math.max(clock, isTicket(tail) and tail + 1 or 0)
  end
  -- It must send this again within that time, or it is skipped.
  local stop = string.format("%.0f", -now - waiter_lasts)
  redis.call("ZADD", queue, string.format("%.0f", ticket), owner, stop, expiry(owner))
  redis.call("PEXPIRE", queue, waiter_lasts)
  waiters = waiters + 1
end
settle()
if fences[owner] then ends[owner], lengths[owner] = now + lease, lease end
finish(handed == 1 or released == 1)

if fences[owner] then return answer({"leased", released, fences[owner], handed}) end
local left = lease
if not queue then left = math.min(left, unreachable_poll) end -- an unreachable queue sends no notification
for _, stop in pairs(ends) do left = math.min(left, stop - now) end
return answer({"wait", released, string.format("%.0f", ticket), left})
