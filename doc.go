// Package fetchonce loads a value once, however many callers in however many
// processes ask for it at the same moment.
//
// A [Loader] keeps values in Redis. [Loader.Get] returns the value of a key, or
// calls a function to fetch it. While that runs, everyone else who asks for the
// key waits for what it finds: goroutines of the same process for each other,
// processes for a message. So a slow remote API is called once, a row is
// inserted once, and an entry that expires does not send a thousand callers to
// its origin.
//
// Around that: [Loader.GetMany] loads many keys in one batch, [Loader.Update]
// changes the source of truth and the cache together, a [Locker] lets one at a time
// do a thing, and [Wrap] and [Serialize] give a function a Loader or a lock.
//
// # What happens to a key
//
//	Get ──► GET in Redis ──► there ─────────────────────────────────────► value
//	          │ not there (or not usable; or hardly any Get has found one of late)
//	          ▼
//	        the process's flight: one load, all its callers wait for it
//	          │
//	          ▼
//	   ┌──► ACQUIRE ──► there after all ────────────────────────────────► value
//	   │      │  │
//	   │      │  └───► another process holds the lease: WAIT
//	   │      │          ├─ its message has the value ──────────────────► value
//	   │      │          ├─ its message has a failure ──────────────────► error
//	   ├──────┼──────────┴─ "look again", or the timer: no message came
//	   │      ▼
//	   │    we hold the lease: Store.Lookup, fetch, Store.Create
//	   │      ├─ value ──► FILL: stored, lease ended, waiters told ──────► value
//	   │      ├─ error ──► RELEASE: lease ended, waiters told ───────────► error
//	   └──────┴─ the lease was lost (Delete, Set, no contact with Redis)
//
// ACQUIRE, FILL and RELEASE are scripts, so each happens as a whole. ACQUIRE
// looks for the value again, as another process may have stored it since the
// GET. FILL stores nothing unless the lease is still ours: a Delete ends the
// lease together with the value, so what was fetched before a Delete cannot come
// back after it.
//
// A lease ends by itself, [Options.Lease] after its holder was last heard of. The
// holder renews it at a third of that; when it cannot, the context of its fetch
// ends with [ErrLockLost] no later than the lease does in Redis, by the holder's
// own monotonic clock.
//
// Messages make waiting quick, not right: they may be lost, and a waiter then
// finds the value by its timer, within a second or when the lease ends.
//
// With [Options.Near], a process keeps copies of values, and a Get of one costs no
// round trip. The server tells the process what changes, by whomever; a copy is
// used only while it is proven that this is heard, see [Near].
//
// # What is promised
//
//   - While a lease is valid, one process fetches a key; in it, one goroutine.
//   - A value whose fetch began before a [Loader.Delete] or [Loader.Set] that has
//     returned is not stored after it, nor returned to a Get that began after it.
//   - What was fetched is returned to its callers, even if Redis fails then.
//   - A caller waits as long as its own context allows. That it leaves fails
//     nobody. When the last one has left, the fetch's context ends and the lease
//     is given back; who comes later starts afresh.
//   - A failure goes at once to all who waited for that fetch, in all processes,
//     and is not remembered unless [Options.ErrorTTL] says so.
//   - A process that dies in an Update leaves no value from before its write for
//     longer than a lease.
//   - A [Loader.Delete], [Loader.Set] or [Loader.Update] that has returned is seen
//     past the copies of [Options.Near] by the same process at once, and by others
//     as soon as they hear of it.
//   - With a [Store] that keeps one row for each key, all callers get what is in
//     the row, whatever becomes of leases.
//   - Nothing waits for ever: neither for a dead process, nor for a fetch that
//     hangs, a message that is lost, or a Redis that does not answer.
//
// # What is not promised
//
// A lease in Redis saves work; it does not by itself make work safe. A failover
// may lose it, and a process that was stopped for longer than its lease may go on
// with what it did. Whoever would be harmed checks [Fetch.Fence] where the data
// lives, or relies on a unique key. A failover that loses writes which Redis had
// acknowledged may lose a Delete too: then the old value stays until its TTL.
// With [FailOpen], a process that cannot reach Redis fetches without a lease, and
// hears of no Delete: a caller that comes while it fetches looks again afterwards.
package fetchonce
