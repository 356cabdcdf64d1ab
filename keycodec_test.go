package fetchonce_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// copyValue copies the value of a key to another one, as an attacker does who can write
// to Redis: in an envelope for the other key.
func copyValue(t *testing.T, r backend, from, to string) []byte {
	t.Helper()
	b, err := r.Client().Get(t.Context(), "test:v:{"+from+"}").Bytes()
	if err != nil {
		t.Fatal(err)
	}
	h, payload, err := envelope.Open(b, envelope.Digest("test:v:{"+from+"}"))
	if err != nil {
		t.Fatal(err)
	}
	h.Digest = envelope.Digest("test:v:{" + to + "}")
	if err := r.Client().Set(t.Context(), "test:v:{"+to+"}", envelope.Seal(h, payload), time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	return payload
}

// An encrypted value that is copied to another key is a miss there. It is read at its
// own key, by Get, GetMany and Peek, and not stored in the clear.
func TestEncryptedValueIsBoundToItsKey(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		codec, err := newSealedCodec(bytes.Repeat([]byte{7}, 32), "test")
		if err != nil {
			t.Fatal(err)
		}
		l := newLoader(t, r, func(opt *options) { opt.Codec = codec })
		testkit.Set(t, l, "alice", "of alice")
		if payload := copyValue(t, r, "alice", "mallory"); bytes.Contains(payload, []byte("of alice")) {
			t.Errorf("the payload is %q; want it encrypted", payload)
		}
		if got, err := l.Peek(t.Context(), "alice"); got.Value != "of alice" || err != nil {
			t.Errorf("Peek = %+v, %v; want the value of alice", got, err)
		}
		if got, err := l.Peek(t.Context(), "mallory"); got.Value != "" || err == nil {
			t.Errorf("Peek of a copied value = %+v, %v; want ErrNotFound", got, err)
		}
		b := &bulk{}
		got, err := l.GetMany(t.Context(), []string{"alice", "mallory"}, b.fetch)
		if _, fetched := b.counts(); err != nil || got["alice"] != "of alice" || fetched["mallory"] != 1 || fetched["alice"] != 0 {
			t.Errorf("GetMany = %v, %v; fetched %v; want mallory to be fetched alone", got, err, fetched)
		}
		again := newLoader(t, r, func(opt *options) { opt.Codec = codec })
		o := testkit.NewOrigin(t)
		testkit.Get(t, t.Context(), again, "mallory", o).Want(got["mallory"])
	})
}

// A codec that is given no key cannot tell: the copied value is read.
func TestValueWithoutItsKeyIsRead(t *testing.T) {
	inBubble(t, func(t *testing.T, r backend) {
		l := newLoader(t, r, func(opt *options) { opt.Codec = fetchonce.JSON })
		testkit.Set(t, l, "alice", "of alice")
		copyValue(t, r, "alice", "mallory")
		if got, err := l.Peek(t.Context(), "mallory"); got.Value != "of alice" || err != nil {
			t.Errorf("Peek of a copied value = %+v, %v; want the value of alice", got, err)
		}
	})
}
