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

// spinVariable is the environment variable that has a worker spin in its fetch until
// the file of that name begins with something.
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

// spin spins until the first word says that it is enough. It calls nothing, not even
// what the race detector would have it call, so no other goroutine gets to run.
//
//go:norace
//go:noinline
func spin(page *[2]uint32) {
	for page[0] == 0 {
		page[1]++
	}
}

// mapPage returns the first words of a file, as other processes have them in their
// memory.
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
	return (*[2]uint32)(unsafe.Pointer(&page[0])), nil // for as long as the process lives
}

// A process has one core, and its fetch never yields it, so no renewal runs. Another process
// takes over. When the fetch checks its context, before any other goroutine could run, it has
// ended. The value is not stored.
func TestStarvedRenewalLosesTheLease(t *testing.T) {
	server := redistest.Server(t)
	path := filepath.Join(t.TempDir(), "page")
	page, err := mapPage(path)
	if err != nil {
		t.Fatal(err)
	}
	holder := startWorker(t, server, spinVariable+"="+path, "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
	holder.says("fetching")
	second := startWorker(t, server)
	second.says("fetching") // the lease has ended
	atomic.StoreUint32(&page[0], 1)
	if got := holder.says("starved"); got != "true" {
		t.Error("its context had not ended")
	}
	holder.returns("old")
	holder.says("ended")
	if got := holder.says("got"); !strings.HasPrefix(got, "old ") {
		t.Errorf("the starved process got %q", got)
	}
	second.returns("new")
	if got := second.says("got"); !strings.HasPrefix(got, "new ") {
		t.Errorf("the other got %q", got)
	}
	testkit.WantKept(t, testkit.NewLoader(t, server.Backend()), "new")
}
