// Package programs finds the programs that tests, soaks and benchmarks start. It skips
// tests whose programs are missing.
//
// Its environment variables are for tests only:
//
//   - FETCHONCE_REQUIRE_SERVERS=1: a test that lacks a program fails.
//   - FETCHONCE_ONLY_PATH=1: programs outside PATH count as missing. A machine with
//     servers can then run the tests like a machine without them.
//   - FETCHONCE_REDIS_SERVER: the program to start instead of redis-server, which
//     "make test REDIS_SERVER=..." sets.
package programs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// ErrNoRedis reports that no redis-server is on PATH.
var ErrNoRedis = errors.New("no redis-server")

// Redis returns the path of redis-server, or of the program that
// FETCHONCE_REDIS_SERVER names instead. With the argument --sentinel the program runs
// as a Sentinel. If no redis-server is on PATH and the variable is empty, the error is
// [ErrNoRedis].
func Redis() (string, error) {
	if runtime.GOOS == "windows" {
		return "", fmt.Errorf("%w: none is started on Windows, which has no signals", ErrNoRedis)
	}
	if chosen := os.Getenv("FETCHONCE_REDIS_SERVER"); chosen != "" {
		path, err := exec.LookPath(chosen)
		if err != nil {
			return "", fmt.Errorf("FETCHONCE_REDIS_SERVER: %w", err)
		}
		return path, nil
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoRedis, err)
	}
	return path, nil
}

// Directories returns the directories that match patterns. It is for programs that are
// not on PATH, and returns no directories if FETCHONCE_ONLY_PATH is 1.
func Directories(patterns ...string) (dirs []string) {
	if os.Getenv("FETCHONCE_ONLY_PATH") == "1" {
		return nil
	}
	for _, pattern := range patterns {
		matches, _ := filepath.Glob(pattern) // fails for a malformed pattern only
		dirs = append(dirs, matches...)
	}
	return dirs
}

// Lacks skips a test because the server lacks a feature. It fails the test if
// FETCHONCE_REQUIRE_SERVERS is 1 and FETCHONCE_REDIS_SERVER is empty, because the
// redis-server that CI installs has every feature.
func Lacks(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("FETCHONCE_REDIS_SERVER") == "" {
		Missing(tb, errors.New("redis-server lacks "+what))
	}
	tb.Skip("this server lacks ", what)
}

// Missing skips a test that needs a missing program, with the reason why. It fails the
// test if FETCHONCE_REQUIRE_SERVERS is 1.
func Missing(tb testing.TB, why error) {
	tb.Helper()
	if os.Getenv("FETCHONCE_REQUIRE_SERVERS") == "1" {
		tb.Fatal("FETCHONCE_REQUIRE_SERVERS is 1, and this is missing: ", why)
	}
	tb.Skip(why)
}
