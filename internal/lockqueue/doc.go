// Package lockqueue decides which caller of this process holds a lock next. The Locker uses it.
//
// Callers of one name wait in a local queue, in the order of their arrival. One goroutine, the
// requester, waits for the lock in the queue in Redis on behalf of all of them. When Redis grants
// the lock, the first local waiter receives it.
//
//	Acquire ──► local queue ◄── granted ── requester ◄──► queue in Redis
//	                 │                        ▲
//	                 ▼                        │ release and request
//	               Hold ── Release ───────────┤
//	                 ▲        │               ▼ release
//	                 └────────┘           Redis grants the lock to the next process
//	             local hand-off
//
// A local hand-off passes the lock to the next local waiter without a command. Local hand-offs serve
// as many callers as waited when Redis granted the lock, for at most protocol.LockFences holds in
// all. None begins later than maxLocal after the grant. Then the lock is released in Redis, so that
// other processes receive it too. After a TryAcquire, callers that came later are served within the
// same limits. A semaphore has no local hand-off.
//
// A release in Redis grants the lock to the longest waiter of the queue there, and notifies its
// process. The requester of that process confirms the grant by sending its request again. If it does
// not do so within 250 ms, the next waiter gets the lock; see lock.lua in internal/protocol. If local
// waiters remain, release and request are one script; see "What does each mechanism for speed gain?"
// in docs/internals/design.md.
//
// A requester always waits for the answer to its request, within RedisTimeout. If the answer is
// unknown, internal/cleanup removes the owner from the lock in the background.
//
// The Locker renews the leases, and turns the errors of this package into those of fetchonce.
package lockqueue
