package wake_test

import (
	"sync/atomic"
	"testing"

	"github.com/fetchonce/fetchonce/internal/contexttest"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// The mailbox calls the function of OnLost without its mutex: that function may call the
// mailbox, or a method of a context that does.
func TestHolderMayCallTheMailbox(t *testing.T) {
	redistest.Each(t, func(t *testing.T, r redistest.Backend) {
		p := newProcess(t, r)
		var calls, held atomic.Int32
		owner := p.Owner()
		defer p.OnLost(owner, func() {
			if !contexttest.IsFree(wake.Mutex(p.Mailbox)) {
				held.Add(1)
			}
			calls.Add(1)
		})()
		p.publish(message('L', 0, name, owner))
		r.Until("the holder is notified", func() bool { return calls.Load() == 1 })
		if held.Load() > 0 {
			t.Error("the mailbox held its mutex")
		}
	})
}
