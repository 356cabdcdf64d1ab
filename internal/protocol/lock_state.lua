-- lock_state.lua: the limits of locks, and the state of the lock. Each lock script begins with this. The limits are not
-- arguments, as every argument costs as much as a quarter of a command.
local remembered = 1000 -- ms: the key of a lock lasts for so long after its last lease
local confirmed_within = 250 -- ms: a hand-off must be confirmed, however long the lease of the releasing process is
local waiter_lasts = 3000 -- ms: a waiter that does not poll for so long leaves the queue; so does a foreign queue
local clock_back = 1000 -- ms: a time is ahead of the clock by no more, unless the clock was set back by more
local fence_ahead = 999000 -- µs: the same for a fence; less than remembered, see grant
local fences_per_lease = 16 -- one for each hold inside a process
local longest_lease = 3600000 -- ms: of another process, as its entry says
local longest_state = 131072 -- bytes: of the text of a lock
local most_waiters = 4096
local unreachable_poll = 50 -- ms: a waiter polls as often while the queue, and so a notification, is unreachable
local state = redis.pcall("GETRANGE", KEYS[1], 0, longest_state)
