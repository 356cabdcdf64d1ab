//go:build !linux

// Command chaos needs Linux, where processes can be seen to have stopped and end
// with their parent.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "chaos: it runs on Linux only")
	os.Exit(1)
}
