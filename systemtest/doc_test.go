// Package systemtest_test tests the public API as users run it: in several processes, on real
// servers and clusters, over TLS, under load and with faults of Redis. Tests of single rules are
// in the root package. On a machine without a server, the tests that need one skip.
package systemtest_test
