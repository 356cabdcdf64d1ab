-- lock_free.lua: the fast path of lock_acquire.lua: the lock has no holder and no queue, and the caller releases
-- nothing.
-- Returns "<fence>".
if not ARGV[6] then
  local last
  if state == "" then last = 0 elseif not state.err then last = string.match(state, "^lock (%d+)$") end
  if last and (not KEYS[2] or redis.call("EXISTS", KEYS[2]) == 0) then
    local time = redis.call("TIME")
    local clock = time[1] * 1000000 + time[2]
    last = tonumber(last) or 0
    if last > clock + fence_ahead then last = 0 end
    local fence = string.format("%.0f", math.max(clock, last + fences_per_lease))
    local length = ARGV[2] - remembered
    local stop = math.floor(clock / 1000) + length
    local holder = " " .. ARGV[1] .. " " .. fence .. " " .. stop .. "/" .. length
    redis.call("SET", KEYS[1], "lock " .. fence .. holder, "PX", ARGV[2])
    return fence
  end
end
