package protocol

import (
	"strconv"
	"strings"
	"time"
)

// A Database is what Expire needs of a Redis in memory.
type Database interface {
	Keys() []string
	HKeys(name string) ([]string, error)
	HGet(name, field string) string
	HSet(name string, fieldsAndValues ...string)
	SetTTL(name string, ttl time.Duration)
}

// Expire makes the leases of a user's key, and those of a lock of that name, end
// within a millisecond, in all namespaces of a Redis with our own clock, and reports whether there were any. It
// is for tests.
func Expire(db Database, user string) bool {
	found := false
	for _, name := range db.Keys() {
		switch kind, tag := kindOf(name); {
		case tag != Tag(user):
		case kind == "m" && db.HGet(name, "o") != "":
			db.SetTTL(name, time.Millisecond)
			found = true
		case kind == "l":
			found = expireHolders(db, name) || found
		}
	}
	return found
}

// expireHolders has the leases of a lock have ended. The lock itself goes on for a
// moment, with the last of its fences.
func expireHolders(db Database, name string) bool {
	found := false
	fields, _ := db.HKeys(name) // what is no hash has none
	for _, field := range fields {
		fence, end, ok := strings.Cut(db.HGet(name, field), " ")
		if ms, _ := strconv.ParseInt(end, 10, 64); ok && ms > time.Now().UnixMilli() {
			db.HSet(name, field, fence+" 0")
			found = true
		}
	}
	return found
}

// kindOf returns the letter that says what a name is of, without a schema, and
// the tag of its key.
func kindOf(name string) (kind, tag string) {
	head, tag := SplitName(name)
	head = strings.TrimSuffix(head, ":{")
	kind, _, _ = strings.Cut(head[strings.LastIndexByte(head, ':')+1:], "@")
	return kind, tag
}
