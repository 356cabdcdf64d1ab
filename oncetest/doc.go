// Package oncetest helps to test programs that use fetchonce.
//
// [Redis] starts a Redis in memory for a test, in a testing/synctest bubble or not.
// [NewClient] returns a client for a second process, and [NewClientWith] one with the timeouts
// and retries of your program. [Down], [Hang], [FailNext],
// [DropMessages] and [ExpireLease] make Redis fail.
//
// [TestStore] checks a [fetchonce.Store] of your own. [RoundTrip] names what a codec does not
// bring back of a value.
//
// The package is for tests: it links the testing package and miniredis.
package oncetest
