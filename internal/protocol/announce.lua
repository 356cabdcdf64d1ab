-- announce.lua: the notification of near caches. The scripts that change a value have this after notify.lua.
-- announce publishes the name of a value that has changed, for near caches on a server without tracking. A cluster
-- forwards a message to every node, so it is only sent if this node has a subscriber, too.
local function announce(channel, value)
  local subscribers = redis.pcall("PUBSUB", "NUMSUB", channel)
  if subscribers.err or tonumber(subscribers[2]) > 0 then notify(channel, value) end
end
