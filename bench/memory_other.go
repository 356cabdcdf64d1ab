//go:build !unix

package main

import (
	"errors"
	"os"
)

// mapShared returns an error: the benchmark starts no server here either.
func mapShared(*os.File, int) ([]byte, error) { return nil, errors.ErrUnsupported }

func unmap([]byte) error { return nil }
