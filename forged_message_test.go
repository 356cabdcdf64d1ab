package fetchonce_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// publishForged publishes a message about a key to all processes, with any fence.
func publishForged(t *testing.T, r backend, kind byte, fence int64, body string) {
	t.Helper()
	rdb, name := testkit.Admin(r), "test:v:{k}"
	message := binary.BigEndian.AppendUint64([]byte{kind}, uint64(fence))
	message = append(append(binary.AppendUvarint(message, uint64(len(name))), name...), body...)
	channels := rdb.PubSubChannels(t.Context(), "test:b:*").Val()
	if len(channels) == 0 {
		t.Error("no process is subscribed")
	}
	for _, channel := range channels {
		if err := rdb.Publish(t.Context(), channel, message).Err(); err != nil {
			t.Error(err)
		}
	}
	synctest.Wait()
}

// A stranger publishes a failure or a value with a fence that is not that of the lease. Whoever
// waits for that goes on waiting, and its next refresh is not put off.
func TestForgedFenceReachesNoWaiter(t *testing.T) {
	for _, kind := range []byte{'E', 'V'} {
		inBubble(t, func(t *testing.T, r backend) {
			opt := aging(func(opt *options) { opt.StaleIfError = 2 * time.Hour })
			holder, waiter := newLoader(t, r, opt), newLoader(t, r, opt)
			_ = holder.Set(t.Context(), "k", "old")
			time.Sleep(61 * time.Second)
			o := testkit.NewOrigin(t)
			first := testkit.Get(t, t.Context(), holder, "k", o)
			call := o.Next()
			second := testkit.Get(t, t.Context(), waiter, "k", o)
			testkit.AwaitWaiters(t, r, "k", 1)
			synctest.Wait()
			for _, fence := range []int64{1 << 62, time.Now().Add(time.Hour).UnixMicro()} {
				publishForged(t, r, kind, fence, "echosen\n\x1b[31mtext")
				if second.Returned() {
					t.Fatalf("a forged %c with the fence %d ended a Get", kind, fence)
				}
			}
			call.Returns("new")
			first.Want("new")
			second.Want("new")
		})
	}
}

// A failure that another process publishes is one printable line.
func TestFailureOfAnotherProcessIsOneLine(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		holder, waiter := newLoader(t, r), newLoader(t, r)
		o := testkit.NewOrigin(t)
		first := testkit.Get(t, t.Context(), holder, "k", o)
		call := o.Next()
		second := testkit.Get(t, t.Context(), waiter, "k", o)
		testkit.AwaitWaiters(t, r, "k", 1)
		boom := errors.New("down\n\x1b[31mlevel=ERROR \u202emsg=forged")
		call.Fails(boom)
		first.WantErr(boom)
		var ours *fetchonce.Error
		want := `down\n\x1b[31mlevel=ERROR \u202emsg=forged`
		if out := second.Outcome(); !errors.As(out.Err, &ours) || ours.Err.Error() != want {
			t.Errorf("Get = %v, want the text %s", out.Err, want)
		}
	})
}
