// Package protocol has the names of the keys in Redis, one Go function for each script, and the
// notifications between processes. No other package knows the KEYS and ARGV of a script, or how
// a name is made.
//
// A read is a GETRANGE. Each other operation is one script, which Redis runs as one step. While a
// slot of a cluster moves, it may be scripts with one Redis key each instead; see tryagain.go.
//
// An operation may be sent twice. The second time does no harm, but its answer may differ; see the
// head of its script. So every operation is sent again after an error that ends soon.
//
// The package does not know what values mean and has no policy: the loader and internal/lockqueue
// decide what follows an answer. internal/wake and internal/near use its names and messages.
//
// # Keys
//
// All names that belong to one key of the user have the same hash tag, so a cluster keeps them on
// one node:
//
//	<prefix>:v:{key}           value: a sequence of segments; lasts as long as the last of them
//	<prefix>:m:{key}           meta: the lease, its waiters, or a failure
//	<prefix>:u:{key}           write marks of running Updates
//	<prefix>:t:{key}<owner>    a large value, staged before the script that stores it
//	<prefix>:l:{name}          lock: its holders, each with a fence and an end
//	<prefix>:q:{name}          queue of the lock: its waiters, each with a ticket and the end of its wait
//	<prefix>:b:<process>       channel of the notifications for a process
//	<prefix>:i                 channel of changed values, for near caches on a server that
//	                           refuses tracking
//	<prefix>:h:<process>:...   heartbeats of a near cache
//
// Builds with different schemas share all of these.
//
// Meta is a hash that ends with the lease. Its field o is the owner ("<process>.<number>") and f
// the fence. There is a field w<process> for each process that waits. s is set if the value has
// segments of other schemas. After a failure that is shared, it has only e, the failure, and f; and
// b, if only callers with a stale value receive the failure.
//
// Marks is a hash with a field for each running Update: when its mark ends unless it is renewed,
// in ms by the server's clock. A mark ends the lease that it finds. A lease that is taken while
// there is a mark is tainted (u in meta): its value goes to the waiters and is never stored. So if
// the writer dies, no value from before its write stays.
//
// lock.lua describes the keys of a lock. They end by themselves, too: a lock one second after its
// last lease, a queue when no waiter polls for 3 seconds.
//
// Any client with access to Redis may write anything to these keys. lease.lua bounds what the
// scripts read: no lease and no mark lasts longer than LongestLease, no failure is longer than
// 1 KiB, and a lease has a bounded number of waiters. The scripts ignore what exceeds that.
//
// # Segments
//
// A value is a sequence of envelopes, its segments: at most three, each of another schema, the
// newest first. There is more than one only while builds with different schemas run. The digest
// of an envelope contains the schema; see internal/envelope. A reader searches for the segment
// with its digest, which is most often the first and only one.
//
// FILL writes its segment first and keeps those of other schemas that have not ended. The value
// lasts as long as the last of its segments. So if there are several, a reader decides by the
// clock whether one has ended. INVALIDATE and SET remove all segments. Lease and marks belong to
// the key, so they count for all builds.
//
// ACQUIRE identifies a value by its first 56 bytes. Each FILL and SET changes them: the new
// segment comes first and has a new fence, which is higher than those of the others.
//
// # Fences
//
// The fence of a lease is higher than that of every lease of the key before it. It is the server's
// time in µs, or one more than the last fence if the clock has not moved. If the last fence is up
// to 5 s ahead of the clock, ACQUIRE makes the caller wait; one that is further ahead is forged and
// ignored. A notification counts for a waiter only if its fence is at least that of the lease it
// waits for, so a late notification of an earlier lease has no effect.
package protocol
