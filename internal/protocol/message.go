package protocol

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// A Kind says what a notification is about.
type Kind byte

// The kinds of notifications.
const (
	KindValue   Kind = 'V' // the body is the value, in its envelope
	KindFailure Kind = 'E' // the fetch failed: the body is a Failure
	KindRetry   Kind = 'R' // the lease ended without a value or a failure in the notification
	KindLost    Kind = 'L' // for the holder: its lease was ended; the body is the owner
	KindGranted Kind = 'G' // for a waiter for a lock: the lock was granted to the owner in Name
	KindProbe   Kind = 'P' // for the process that sent it: its subscription works
)

// AnyFence is the fence of a notification that counts for every waiter.
const AnyFence int64 = math.MaxInt64

// LongestMessage is the largest length of a message in bytes: the largest value in a notification,
// and 64 KiB for its head. A longer message was not sent by fetchonce.
const LongestMessage = largestNotified + 64<<10

// A Message is a notification from another process. It is a hint: any client may publish to the
// channel. It can make a waiter send ACQUIRE. A value in it passes the same checks as one that was
// read from Redis.
type Message struct {
	Kind  Kind
	Fence int64
	Name  string // the name of the value, see Key.Value; or an owner
	Body  string // Body and Name are parts of the payload, not copies
}

// Answers reports whether a message counts for a waiter for the lease with that fence; now is by
// the server's clock. A failure counts if it has that fence. A value may be from a later Set, so it
// may have a higher fence, up to now and one minute for clocks that disagree. Any other message
// only makes the waiter send ACQUIRE, so it always counts.
func (m *Message) Answers(fence int64, now time.Time) bool {
	switch m.Kind {
	case KindFailure:
		return m.Fence == fence
	case KindValue:
		return m.Fence >= fence && m.Fence <= now.Add(time.Minute).UnixMicro()
	}
	return true
}

var errMessage = errors.New("not one of our messages")

// messageHead returns a message without its body.
func messageHead(kind Kind, fence int64, name string) []byte {
	b := make([]byte, 0, 9+binary.MaxVarintLen32+len(name))
	b = append(b, byte(kind))
	b = binary.BigEndian.AppendUint64(b, uint64(fence))
	b = binary.AppendUvarint(b, uint64(len(name)))
	return append(b, name...)
}

// ParseMessage parses a message. The error says that fetchonce did not write it.
func ParseMessage(payload string) (Message, error) {
	if len(payload) < 10 {
		return Message{}, errMessage
	}
	m := Message{Kind: Kind(payload[0]), Fence: int64(binary.BigEndian.Uint64([]byte(payload[1:9])))}
	n, width := binary.Uvarint([]byte(payload[9:min(len(payload), 9+binary.MaxVarintLen32)]))
	rest := payload[9:]
	if width <= 0 || n > uint64(len(rest)-width) {
		return Message{}, errMessage
	}
	m.Name = rest[width : width+int(n)]
	m.Body = rest[width+int(n):]
	switch m.Kind {
	case KindValue, KindFailure, KindRetry, KindLost, KindGranted, KindProbe:
		return m, nil
	}
	return Message{}, errMessage
}

// Probe returns the message that a process publishes to check its own subscription.
func Probe() []byte { return messageHead(KindProbe, 0, "") }
