-- lock_renew.lua: make our lease of a lock last from now.
-- Returns 1, or 0 if the lease is not ours any more.
if not fences[ARGV[1]] then return 0 end
ends[ARGV[1]], lengths[ARGV[1]] = now + lease, lease
finish(true)
return 1
