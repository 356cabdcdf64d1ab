package protocol

import (
	"strconv"
	"strings"
	"time"
)

// A Database is what Expire needs of a Redis in memory.
type Database interface {
	Keys() []string
	HGet(name, field string) string
	Get(name string) (string, error)
	Set(name, value string) error
	TTL(name string) time.Duration
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
// moment, with the last of its fences. For what it looks like, see lock.lua.
func expireHolders(db Database, name string) bool {
	state, _ := db.Get(name) // what is no string is empty
	words := strings.Split(state, " ")
	found := false
	for end := 4; end < len(words); end += 3 {
		at, _, _ := strings.Cut(words[end], "/")
		if ms, _ := strconv.ParseInt(at, 10, 64); ms > time.Now().UnixMilli() {
			words[end] = "0"
			found = true
		}
	}
	if !found {
		return false
	}
	left := db.TTL(name)
	_ = db.Set(name, strings.Join(words, " ")) // it is a string
	db.SetTTL(name, left)
	return true
}

// kindOf returns the letter that says what a name is of, and the tag of its key.
func kindOf(name string) (kind, tag string) {
	head, tag := SplitName(name)
	head = strings.TrimSuffix(head, ":{")
	return head[strings.LastIndexByte(head, ':')+1:], tag
}
