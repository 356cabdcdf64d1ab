-- lock_state.lua: the limits of locks, and the state of the lock. Each lock script begins with this. The limits are not
-- arguments, as every argument costs as much as a quarter of a command.
local remembered = 1000 -- ms: how long the key of a lock lasts after its last lease
local confirmed_within = 250 -- ms: a hand-off must be confirmed, however long the lease of the releasing process is
local waiter_lasts = 3000 -- ms: a waiter that does not poll in this time leaves the queue; a foreign queue is deleted after it
local clock_back = 1000 -- ms: how far a time may be ahead of the clock, after the clock was set back
local fence_ahead = 999000 -- µs: the same for a fence; less than remembered, see grant
local fences_per_lease = 16 -- one for each hold inside a process
local longest_lease = 3600000 -- ms: of another process, as its entry says
local longest_state = 131072 -- bytes: of the text of a lock
local most_waiters = 4096
local unreachable_poll = 50 -- ms: how often a waiter polls while the queue is unreachable: then it receives no notification
local state = redis.pcall("GETRANGE", KEYS[1], 0, longest_state)
