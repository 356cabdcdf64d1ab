//go:build linux

package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// spinVariable is the environment variable that makes a worker spin in its fetch. It names a file;
// the worker spins until the first word of the file is not 0.
const spinVariable = "FETCHONCE_TEST_SPIN"

func init() {
	path := os.Getenv(spinVariable)
	if path == "" {
		return
	}
	inFetch = func(ctx context.Context) {
		page, err := mapPage(path)
		if err != nil {
			fmt.Println("error", err)
			return
		}
		spin(page)
		err = ctx.Err()
		fmt.Println("starved", err != nil && errors.Is(context.Cause(ctx), fetchonce.ErrLockLost))
	}
}

// spin runs until the first word is not 0. It calls no function, and the race detector inserts no
// calls, so no other goroutine runs.
//
//go:norace
//go:noinline
func spin(page *[2]uint32) {
	for page[0] == 0 {
		page[1]++
	}
}

// mapPage maps the first words of a file, which other processes map too.
func mapPage(path string) (*[2]uint32, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(8); err != nil {
		return nil, err
	}
	page, err := syscall.Mmap(int(f.Fd()), 0, 8, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*[2]uint32)(unsafe.Pointer(&page[0])), nil // until the process ends
}

// A process has one core, and its fetch never yields it, so no renewal runs and the lease ends.
// The context of the fetch has ended when the fetch checks it, although no other goroutine has run.
// The value is not stored.
func TestStarvedRenewalLosesTheLease(t *testing.T) {
	server := redistest.Server(t)
	path := filepath.Join(t.TempDir(), "page")
	page, err := mapPage(path)
	if err != nil {
		t.Fatal(err)
	}
	holder := startWorker(t, server, spinVariable+"="+path, "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
	holder.await("fetching")
	second := startWorker(t, server)
	second.await("fetching") // the lease has ended
	atomic.StoreUint32(&page[0], 1)
	if got := holder.await("starved"); got != "true" {
		t.Error("its context had not ended")
	}
	holder.returns("old")
	holder.await("ended")
	if got := holder.await("got"); !strings.HasPrefix(got, "old ") {
		t.Errorf("the starved process got %q", got)
	}
	second.returns("new")
	if got := second.await("got"); !strings.HasPrefix(got, "new ") {
		t.Errorf("the other process got %q", got)
	}
	testkit.WantKept(t, testkit.NewLoader(t, server.Backend()), "new")
}
