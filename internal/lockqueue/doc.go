// Package lockqueue decides which caller of this process holds a lock next. The Locker uses it.
//
// Callers of one name wait in a local queue, in the order of their arrival. One goroutine, the
// requester, waits for the lock in the queue in Redis on behalf of all of them. When Redis grants
// the lock, the first local waiter receives it.
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
// protocol.LockFences holds, or maxLocal, the lock is released in Redis, so that other processes
// receive it too. A semaphore has no local hand-off. If local waiters remain, release and request
// are one script; see "What does each mechanism for speed gain?" in docs/internals/design.md.
//
// A requester always waits for the answer to its request, within RedisTimeout. If the answer is
// unknown, internal/cleanup removes the owner from the lock in the background.
//
// The package renews no leases by a timer, and does not know the errors of package fetchonce: the
// Locker does both.
package lockqueue
