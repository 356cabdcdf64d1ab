// Package drivertest runs the tests of oncesql over real databases. It is a separate module,
// so a user's program does not depend on its drivers.
package drivertest
