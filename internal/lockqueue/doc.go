// Package lockqueue decides which caller of this process holds a lock next.
//
// Callers of one name wait in a local queue, in the order of their arrival. While they
// wait, one goroutine, the requester, waits for the lock in the queue in Redis. The first
// local waiter receives what Redis grants.
//
//	Acquire ──► local queue ◄── granted ── requester ◄──► queue in Redis
//	                 │                        ▲
//	                 ▼                        │ no local hand-off
//	               Hold ── Release ───────────┤
//	                 ▲        │               ▼
//	                 └────────┘           released in Redis, for the next process
//	             local hand-off
//
// A local hand-off passes the lock to the next local waiter without a command. After
// protocol.LockFences holds, or maxLocal, the lock returns to Redis, so that other
// processes get it too. A semaphore has no local hand-off.
//
// A request that may change the holder is always waited for, within RedisTimeout. If its
// answer is not known, internal/cleanup takes the owner out of the lock in the background.
//
// The room does not renew holds by a timer, and knows no errors of package fetchonce: the
// Locker does both.
package lockqueue
