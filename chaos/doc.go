// Package chaos does to fetchonce what must not harm it, on real servers and in
// several processes: writers are killed at every step, holders are stopped beyond
// their lease, a lock is broken that locked nobody out.
//
// It has only tests. Each of their processes is this test binary, started again.
// All of them write what they do into one history, which is then judged by
// package history, which knows nothing of the library. Whether the judge would
// notice anything is tested as well: with a library that has a mistake in it.
//
// The tests are short. FETCHONCE_CHAOS=full makes them long, and runs those of the
// mistakes.
package chaos
