package protocol

import (
	"encoding/binary"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
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

// A Failure is the part of a fetch error that other processes receive.
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

// longestFailure limits the text of a Failure, in bytes.
const longestFailure = 1 << 10

func (f Failure) encode() string { return string(rune(f.Class)) + shortened(f.Text) }

// shortened cuts a text between two letters.
func shortened(text string) string {
	if len(text) <= longestFailure {
		return text
	}
	end := longestFailure
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

// printable escapes, as Go does, what is not printed as itself: a text from Redis is one
// line of a log, and does nothing to a terminal.
func printable(text string) string {
	if strings.IndexFunc(text, isUnprintable) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if !isUnprintable(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

func isUnprintable(r rune) bool { return !unicode.IsPrint(r) }

// ParseFailure reads what encode wrote. Anything is some failure, and its text is
// short and printable.
func ParseFailure(s string) Failure {
	if s == "" {
		return Failure{Class: FailedFetch, Text: "unknown failure"}
	}
	text := strings.ToValidUTF8(s[1:min(len(s), longestFailure+1)], "\uFFFD")
	f := Failure{Class: FailureClass(s[0]), Text: shortened(printable(text))}
	switch f.Class {
	case FailedFetch, FailedPanic, FetchTimeout:
	default:
		f.Class = FailedFetch
	}
	return f
}
