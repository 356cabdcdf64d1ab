-- segment.lua: the segments of a value: see internal/envelope. FILL has this after lease.lua.
local most_segments = 3 -- in a value, each of another schema
local most_bytes = 16777216 -- of other schemas: what a script copies blocks the server for 1.4 ms per MiB
local clock_skew = 1000 -- ms: how far the clock of a process that stamps a segment may be ahead of the server's

-- segment_size returns the length of a segment that begins with these 56 bytes, or nil if they are no header.
local function segment_size(head)
  if #head < 56 or string.sub(head, 1, 2) ~= "fo" or math.floor(string.byte(head, 3) / 16) ~= 1 then return nil end
  return 56 + big_endian(head, 13, 4)
end

-- segment_left returns for how long a segment lasts, in ms.
local function segment_left(head, now) return big_endian(head, 17) + big_endian(head, 41) - now end

-- other_segments returns the segments of a value that have another digest, and for how long the last of them lasts, in
-- ms. A segment may be forged: it leaves out one that has ended, would outlive the key, has a fence that is not below
-- the given one, or is too large. So no segment lasts longer than before.
local function other_segments(value, digest, fence)
  local head = read("GETRANGE", value, 0, 55)
  if not head or #head < 56 then return "", 0 end
  local length = redis.call("STRLEN", value)
  if string.sub(head, 49, 56) == digest and segment_size(head) == length then return "", 0 end
  local life = redis.call("PTTL", value)
  if life <= 0 then return "", 0 end -- forged: every value of fetchonce has a TTL
  local time = redis.call("TIME")
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local others, bytes, longest_left, at = {}, 0, 0, 0
  local have = {[digest] = true}
  for _ = 1, most_segments do
    local size = segment_size(head)
    if not size or at + size > length or #others == most_segments - 1 then break end
    local schema, left = string.sub(head, 49, 56), segment_left(head, now)
    local lasts = left > 0 and left <= life + clock_skew and big_endian(head, 25) < fence
    if lasts and not have[schema] and bytes + size <= most_bytes then
      have[schema] = true
      others[#others + 1] = redis.call("GETRANGE", value, at, at + size - 1)
      bytes, longest_left = bytes + size, math.max(longest_left, left)
    end
    at = at + size
    head = redis.call("GETRANGE", value, at, at + 55)
  end
  return table.concat(others), longest_left
end
