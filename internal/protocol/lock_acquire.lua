-- lock_acquire.lua: become a holder of a lock, or wait in its queue; and give another lease back in the same step.
-- An owner that was handed the lease confirms it by sending this again; one that waits stays in the queue by it.
-- Sent twice with the same owner, it answers the same lease, or the same place in the queue.
-- ARGV  9 "wait", or "try": do not join the queue   10 patience (ms): look again within it, or be passed over
--       11 the ticket from the last answer, or "0"   12 owner of the lease to give back, or ""   13 the b that came with it
-- Returns {"leased", returned, fence, b, handed}: handed is 1 if the lease was ours before we asked;
--         {"wait", returned, ticket, ms}: the next lease ends in so long, if it is not renewed.
--         returned is 1 if the other lease was still there, or was given back by this very request sent before.
local owner, lease = ARGV[1], tonumber(ARGV[8])
local returned = 0
if ARGV[12] ~= "" then
  if fences[ARGV[12]] or (born and born == ARGV[13]) then returned = 1 end
  drop(ARGV[12])
end

local handed = 0
local ticket = 0
if fences[owner] then
  handed = 1
elseif ARGV[9] == "try" then
  settle() -- those who wait come first
  if holders < slots then grant(owner, lease) end
elseif holders < slots and redis.call("EXISTS", KEYS[2]) == 0 then
  grant(owner, lease)
else
  ticket = tonumber(redis.call("ZSCORE", KEYS[2], owner) or ARGV[11])
  if ticket == 0 then
    local tail = redis.call("ZREVRANGE", KEYS[2], 0, 0, "WITHSCORES")
    ticket = math.max(clock, (tonumber(tail[2] or "0") or 0) + 1)
  end
  redis.call("ZADD", KEYS[2], string.format("%.0f", ticket), owner)
  redis.call("HSET", KEYS[3], owner, string.format("%.0f", now + tonumber(ARGV[10])))
  redis.call("PEXPIRE", KEYS[2], ARGV[10])
  redis.call("PEXPIRE", KEYS[3], ARGV[10])
end
settle()
if fences[owner] then hold(owner, lease) end
finish()

if fences[owner] then return {"leased", returned, fences[owner], born, handed} end
local left = lease
for _, stop in pairs(ends) do left = math.min(left, stop - now) end
return {"wait", returned, string.format("%.0f", ticket), left}
