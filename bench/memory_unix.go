//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// mapShared returns memory that all processes share that map the same file.
func mapShared(f *os.File, size int) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func unmap(memory []byte) error { return unix.Munmap(memory) }
