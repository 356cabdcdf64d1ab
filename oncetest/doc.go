// Package oncetest helps to test programs that use fetchonce, and parts that
// they give to it.
//
// [Redis] is a Redis in memory for a test, in a testing/synctest bubble or not.
// [NewClient] is for the next process. Then let things go wrong: [Down], [Hang],
// [FailNext], [DropMessages], [ExpireLease].
//
// [TestStore] checks a [fetchonce.Store] of your own.
//
// The package is for tests: it links the testing package and miniredis.
package oncetest
