// Package oncetest helps to test programs that use fetchonce.
//
// [Redis] starts a Redis server in memory for one test. [NewClient] returns a client for a
// second process, and [NewClientWith] a client with the timeouts and retries of your program.
//
// [Down], [Hang], [FailNext], [DropMessages] and [ExpireLease] make Redis fail.
//
// [TestStore] checks your own implementation of [fetchonce.Store]. [RoundTrip] reports what a
// codec loses of a value.
//
// The package is for tests: it links the testing package and miniredis.
package oncetest
