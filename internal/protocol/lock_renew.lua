-- lock_renew.lua: extend the lease of a lock: it lasts from now.
-- Returns 1, or 0 if the owner has no lease any more.
if not fences[ARGV[1]] then return 0 end
ends[ARGV[1]], lengths[ARGV[1]] = now + lease, lease
finish(true)
return 1
