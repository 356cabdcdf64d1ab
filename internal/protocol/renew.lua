-- renew.lua: extend a lease: it lasts from now.
-- KEYS  1 meta
-- ARGV  1 owner   2 lease (ms)
-- Returns 1, or 0 if the caller has no lease any more.
if read("HGET", KEYS[1], "o") == ARGV[1] then return redis.call("PEXPIRE", KEYS[1], ARGV[2]) end
return 0
