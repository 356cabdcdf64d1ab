// Package drivertest runs the tests of oncesql over real databases. It is a
// module of its own, so that a user's program does not get our drivers.
package drivertest
