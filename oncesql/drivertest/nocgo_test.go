//go:build !cgo

package drivertest_test

const hasCgo = false
