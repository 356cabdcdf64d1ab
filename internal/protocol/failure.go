package protocol

import (
	"hash/fnv"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Failure is the part of a fetch error that other processes receive.
type Failure struct {
	Class     FailureClass
	Text      string
	Sentinels string // the signs of the sentinels that a FailedFetch matches; see Sentinel
}

// A FailureClass is the kind of a failure, as far as callers can distinguish it.
type FailureClass byte

// The classes of failures.
const (
	FailedFetch  FailureClass = 'e'
	FailedPanic  FailureClass = 'p'
	FetchTimeout FailureClass = 't'

	// failedAs is a FailedFetch with sentinels. Their number, in one byte, and their signs come
	// before the text.
	failedAs FailureClass = 'i'
)

// longestFailure limits the bytes of a failure after its class. acquire.lua returns no longer one.
const longestFailure = 1 << 10

const (
	sentinelSize  = 8
	mostSentinels = 16
)

// Sentinel returns the sign of a sentinel error with that text: a hash, the same in each build.
func Sentinel(text string) string {
	h := fnv.New64a()
	h.Write([]byte(text))
	return string(h.Sum(nil))
}

// Is reports whether the failure has the sign of a sentinel.
func (f Failure) Is(sentinel string) bool {
	for rest := f.Sentinels; len(rest) >= sentinelSize; rest = rest[sentinelSize:] {
		if rest[:sentinelSize] == sentinel {
			return true
		}
	}
	return false
}

func (f Failure) encode() string {
	n := min(len(f.Sentinels)/sentinelSize, mostSentinels)
	if n == 0 || f.Class != FailedFetch {
		return string(rune(f.Class)) + shortened(f.Text, longestFailure)
	}
	head := string([]byte{byte(n)}) + f.Sentinels[:n*sentinelSize]
	return string(rune(failedAs)) + head + shortened(f.Text, longestFailure-len(head))
}

// shortened cuts a text after at most end bytes, between two runes.
func shortened(text string, end int) string {
	if len(text) <= end {
		return text
	}
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

// printable escapes unprintable runes as Go does. So a text from Redis stays one line of a log and
// cannot control a terminal.
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

// ParseFailure is the inverse of encode. It accepts any text; the text of the result is short and
// printable.
func ParseFailure(s string) Failure {
	if s == "" {
		return Failure{Class: FailedFetch, Text: "unknown failure"}
	}
	f := Failure{Class: FailureClass(s[0])}
	s = s[1:min(len(s), longestFailure+1)]
	most := longestFailure
	if f.Class == failedAs && s != "" && s[0] > 0 && s[0] <= mostSentinels {
		if head := 1 + int(s[0])*sentinelSize; head <= len(s) {
			f.Sentinels, s, most = s[1:head], s[head:], longestFailure-head
		}
	}
	f.Text = shortened(printable(strings.ToValidUTF8(s, "\uFFFD")), most)
	switch f.Class {
	case FailedFetch, FailedPanic, FetchTimeout:
	default:
		f.Class = FailedFetch
	}
	return f
}
