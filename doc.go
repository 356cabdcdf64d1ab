// Package fetchonce makes concurrent callers share one load, in all processes that
// share a Redis.
//
// A [Loader] keeps values in Redis. [Loader.Get] returns the value of a key, or calls
// a function to fetch it. While that fetch runs, every other caller of the key waits
// for its result. Goroutines of one process share a flight; other processes wait for
// a notification of it. So a slow remote API is called once, a row is inserted once, and an
// expired cache entry does not send a thousand callers to its origin.
//
// [Loader.GetMany] loads many keys with one fetch. [Loader.Update] changes the source
// of truth and the cache together. A [Locker] runs a function in one process at a time.
// [Wrap] and [Serialize] put a Loader or a lock around a function.
//
// # How a key is loaded
//
//	Get ──► GET in Redis ──► found ─────────────────────────────────────► value
//	          │ missing, unusable, or not looked up because recent lookups missed
//	          ▼
//	        the process's flight: one load, which all its callers join
//	          │
//	          ▼
//	   ┌──► acquiring: ACQUIRE ──► stored meanwhile ────────────────────► value
//	   │      │  │         └─────► Redis is unavailable: unleased ──────► fetched value, or error
//	   │      │  │
//	   │      │  └───► waiting: another process holds the lease
//	   │      │          ├─ notified of a value ────────────────────────► value
//	   │      │          ├─ notified of a failure ──────────────────────► error
//	   ├──────┼──────────┴─ notified to retry, or the recheck timer fired
//	   │      ▼
//	   │    holding: Store.Lookup, fetch, Store.Create
//	   │      ├─ value ──► FILL: stored, lease ended, waiters notified ──► value
//	   │      ├─ error ──► RELEASE: lease ended, waiters notified ───────► error
//	   └──────┴─ the lease was lost: a Delete, Set or Update, or no renewal in time
//
// ACQUIRE, FILL and RELEASE are scripts, so each is atomic. ACQUIRE looks the value up
// again, because another process may have stored it since the GET. FILL stores nothing
// unless the lease is still this process's: a Delete ends the lease together with the
// value, so a value fetched before a Delete cannot return after it.
//
// A lease expires [Options.Lease] after its last renewal. The process renews it after
// a third of that time. If it cannot, the context of its fetch ends with [ErrLockLost]
// at the latest when the lease expires in Redis. The process measures that with its own
// monotonic clock.
//
// If the process dies before its FILL reaches Redis, the lease expires, and a waiter gets
// the next one when its recheck timer fires.
//
// Notifications make waiting short. They are not needed for correctness: if one is lost, the
// recheck timer fires after about a second, or right after the lease expires if that is sooner.
//
// With [Options.Near], a process keeps values in a near cache. A Get of such an entry
// costs no round trip. The server reports every change of its value, by any program. An
// entry is used only while heartbeats show that these reports arrive; see [Near].
//
// # What is promised
//
//   - While a lease is valid, one of the processes that reach Redis fetches a key, on one
//     goroutine.
//   - If a fetch began before a [Loader.Delete] or [Loader.Set] returned, its value is
//     not stored after that, and no Get that begins after that returns it. Only the near
//     cache of another process may have it until the server's report arrives.
//   - A fetched value is returned to its callers, even if Redis fails.
//   - A caller waits no longer than its own context; see [Loader.Get] for a cancellation
//     during a command to Redis. When it leaves, the others keep
//     waiting. When the last one leaves, the fetch's context ends and the lease is
//     released; a caller that arrives later starts a new load.
//   - A failure reaches every caller that waited for that fetch, in all processes. It
//     is not remembered unless [Options.ErrorTTL] is set. After a failed refresh, callers
//     with a stale value fetch again only after a backoff.
//   - A process that dies in an Update leaves no value from before its write for
//     longer than a lease.
//   - After a [Loader.Delete], [Loader.Set] or [Loader.Update] returns, the same
//     process uses no older near-cache entry. Other processes drop theirs when the
//     server's report arrives.
//   - With a [Store] that keeps one row for each key, all callers get the value of
//     that row, even if leases are lost.
//   - No caller waits for ever: neither for a dead process nor for a fetch that hangs
//     (unless [Options.FetchTimeout] is off), a lost notification, or a Redis that does
//     not answer.
//
// # What is not promised
//
// A lease in Redis saves work. It does not make work safe: a failover may lose it, and
// a process that is paused for longer than its lease may continue its fetch. Where two
// writers do harm, check [Fetch.Fence] where the data lives, or rely on a unique key.
//
// A failover that loses acknowledged writes may lose a Delete too. The old value then
// stays until its TTL ends.
//
// With [FailOpen], a process that cannot reach Redis fetches without a lease and does not learn of
// Deletes. A caller that arrives during such a fetch does not receive its value: it looks the key
// up again after the fetch. It does receive its failure.
//
// docs/internals/design.md lists the files through which a Get goes.
package fetchonce
