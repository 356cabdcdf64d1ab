-- notify.lua: send notifications, and note it if the server refuses one, as it does to a user that may not PUBLISH. The script
-- goes on: whoever waits finds out by its timer. Every script that notifies begins with this, and ends with answer.
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
