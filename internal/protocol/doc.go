// Package protocol is what the processes say to Redis and, through it, to each
// other: the names of the keys, one Go function for each script, the messages.
// Nobody else sees KEYS, ARGV or the text of a key's name.
//
// It knows no value, no context's meaning and no policy: what to do about an
// answer is the loader's to decide. It is used by the loader and, for its
// messages, by internal/wake.
//
// # Keys
//
// Everything that belongs to one key of a user's has the same hash tag, so a
// cluster keeps it on one node:
//
//	<prefix>:v:{key}           the value: a sequence of segments, as long as one is kept
//	<prefix>:m:{key}           meta: who fetches it, and who waits for that
//	<prefix>:u:{key}           marks: who writes its source of truth now
//	<prefix>:t:{key}<owner>    a large value on its way to v
//	<prefix>:l:{name}          a lock: who holds it, each with a fence and an end
//	<prefix>:q:{name}          its queue: the waiters, each with a ticket and the end of its wait
//	<prefix>:b:<process>       a channel: what the others tell this process
//	<prefix>:i                 a channel: names of values that change, for near
//	                           caches that cannot have the server's own word
//	<prefix>:h:<process>:...   heartbeats of a near cache
//
// Builds with different schemas share all of these. Meta is a hash with an end of at
// most a lease: o is the owner ("<process>.<number>"), f its fence, and
// w<process> stands for each process that waits; s is set if the value has
// segments of other schemas. After a failure that is
// shared, it holds only e, the failure, and f, and b if it is shared only with
// those who have an old value at hand. The lease and the waiters vanish
// together, so nothing is ever left behind.
//
// Marks is a hash with a field for each Update that is under way, and when it
// ends if it is not renewed, in ms by the server's clock. A mark ends the lease
// that it finds, and taints those that are taken while it lasts (u in meta): what
// is fetched under such a lease is told, and not stored, whenever that is. So if
// the writer dies, no value from before its write stays.
//
// Whoever may write to these keys may write anything there. lease.lua bounds what the
// scripts of loads take from them: no lease and no mark of ours ends later than
// LongestLease from now, no failure is longer than 1 KiB, and a lease has a bounded number
// of waiters. What is more is not read, and does not count.
//
// The keys of a lock are said to be what they are in lock.lua. They end by
// themselves, too: a lock a moment after its last lease, a queue when nobody in
// it has looked for as long as its patience.
//
// # Segments
//
// A value is a sequence of envelopes, its segments: at most three, each of another schema,
// the newest first. There is more than one only while builds with different schemas run. The
// schema is in the digest of an envelope; see internal/envelope. A reader looks for the segment
// with its digest; most often it is the first and only one.
//
// FILL writes its segment first and keeps those of other schemas which have not ended. The
// value lasts as long as the last of its segments, so a reader judges the end of one that is
// not alone by the clock. INVALIDATE and SET remove all segments. Lease and marks belong to the
// key, so those of any build count for all.
//
// ACQUIRE knows a value by its first 56 bytes. Each FILL and SET changes them, because the new
// segment comes first and has a new fence. The first segment's fence is the highest.
//
// # Fences
//
// Each lease has a number that is higher than that of every lease of the key
// before it: the server's time in µs, or one more than the last where the
// clock has not moved. A known fence that is up to 5 s ahead of the clock is waited
// for; one that is further ahead is not a fence. A message counts for a waiter only with
// a fence at least that of the lease it was told to wait for, so a message
// that was long on its way is not taken for news.
package protocol
