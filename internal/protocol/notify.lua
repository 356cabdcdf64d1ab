-- notify.lua: publish notifications. If the server refuses one, as to a user without the right to PUBLISH, the script
-- continues: the waiters have their recheck timers. Every script that notifies begins with this, and ends with answer.
local refusal
local function notify(channel, message)
  local sent = redis.pcall("PUBLISH", channel, message) -- pcall: what is stored stays stored
  if type(sent) == "table" then refusal = sent.err end
end

-- answer returns a reply, or {"unnotified", error, reply} if a notification was refused.
local function answer(reply)
  if refusal then return {"unnotified", refusal, reply} end
  return reply
end
