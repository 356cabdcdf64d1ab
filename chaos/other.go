//go:build !linux

// Command chaos needs Linux, which shows whether a process is stopped and ends a process with its
// parent.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "chaos: runs on Linux only")
	os.Exit(1)
}
