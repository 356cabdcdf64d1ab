package protocol

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"unicode/utf8"
)

// A Kind says what a message is about.
type Kind byte

// The kinds of messages.
const (
	KindValue     Kind = 'V' // the body is the value, in its envelope
	KindFailure   Kind = 'E' // the body is a Failure: the fetch failed
	KindLookAgain Kind = 'R' // the lease ended without either
	KindLost      Kind = 'L' // for the holder: the body is the owner whose lease was ended
	KindGranted   Kind = 'G' // for a waiter of a lock: the name is the owner to whom a lease was handed
	KindProbe     Kind = 'P' // a process asks itself whether it still hears anything
)

// AnyFence is the fence of a message that counts for every waiter.
const AnyFence int64 = math.MaxInt64

// A Message is what one process tells another. It is a hint from a channel on
// which anybody may write: it can make a waiter look again, and a value in it
// passes the same checks as one that was read from Redis.
type Message struct {
	Kind  Kind
	Fence int64
	Name  string // of the value in Redis, see Key.Value; or an owner
	Body  []byte
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
	m.Body = []byte(rest[width+int(n):])
	switch m.Kind {
	case KindValue, KindFailure, KindLookAgain, KindLost, KindGranted, KindProbe:
		return m, nil
	}
	return Message{}, errMessage
}

// Probe returns the message by which a process finds out whether it hears.
func Probe() []byte { return messageHead(KindProbe, 0, "") }

// A Failure is how a fetch failed, as far as it can be told to another process.
type Failure struct {
	Class FailureClass
	Text  string
}

// A FailureClass tells the failures apart that callers can tell apart.
type FailureClass byte

// The classes of failures.
const (
	FailedFetch  FailureClass = 'e'
	FailedPanic  FailureClass = 'p'
	FetchTimeout FailureClass = 't'
)

// longestFailure bounds what one process tells another about a failure.
const longestFailure = 1 << 10

func (f Failure) encode() string {
	text := f.Text
	if len(text) > longestFailure {
		cut := longestFailure
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut]
	}
	return string(rune(f.Class)) + text
}

// ParseFailure reads what encode wrote. Anything is some failure.
func ParseFailure(s string) Failure {
	if s == "" {
		return Failure{Class: FailedFetch, Text: "unknown failure"}
	}
	f := Failure{Class: FailureClass(s[0]), Text: strings.ToValidUTF8(s[1:min(len(s), longestFailure+1)], "\uFFFD")}
	switch f.Class {
	case FailedFetch, FailedPanic, FetchTimeout:
	default:
		f.Class = FailedFetch
	}
	return f
}
