package protocol

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// A Kind says what a message is about.
type Kind byte

// The kinds of messages.
const (
	KindValue   Kind = 'V' // the body is the value, in its envelope
	KindFailure Kind = 'E' // the body is a Failure: the fetch failed
	KindRetry   Kind = 'R' // the lease ended without either
	KindLost    Kind = 'L' // for the holder: the body is the owner whose lease was ended
	KindGranted Kind = 'G' // for a waiter of a lock: the lock is granted to the owner with this name
	KindProbe   Kind = 'P' // for the process that sent it: its connection is good
)

// AnyFence is the fence of a message that counts for every waiter.
const AnyFence int64 = math.MaxInt64

// LongestMessage is the length in bytes above which a message is not one of ours: the
// largest value that a message has, and 64 KiB for its head.
const LongestMessage = tellSingle + 64<<10

// A Message is a notification of another process. It is a hint: any client may publish to
// the channel. It can make a waiter ask Redis. A value in it passes the same checks as one
// that was read from Redis.
type Message struct {
	Kind  Kind
	Fence int64
	Name  string // of the value in Redis, see Key.Value; or an owner
	Body  string // a part of the payload, as is Name: nothing is copied
}

// Answers reports whether a message counts for a waiter of the lease with that fence, at now
// by the server's clock. A failure must be that lease's own. A value may be from a later Set,
// but not from the future; a minute is for clocks that disagree. Any other message only makes
// the waiter ask Redis, so it always counts.
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

// messageHead returns a message about a key, up to its body.
func messageHead(kind Kind, fence int64, name string) []byte {
	b := make([]byte, 0, 9+binary.MaxVarintLen32+len(name))
	b = append(b, byte(kind))
	b = binary.BigEndian.AppendUint64(b, uint64(fence))
	b = binary.AppendUvarint(b, uint64(len(name)))
	return append(b, name...)
}

// ParseMessage reads a message.
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

// Probe returns the message with which a process checks its subscription.
func Probe() []byte { return messageHead(KindProbe, 0, "") }
