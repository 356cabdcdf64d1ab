package protocol

import (
	"strconv"
	"strings"
	"time"
)

// A Database has the methods of an in-memory Redis that Expire calls.
type Database interface {
	Keys() []string
	HGet(name, field string) string
	Get(name string) (string, error)
	Set(name, value string) error
	TTL(name string) time.Duration
	SetTTL(name string, ttl time.Duration)
}

// Expire makes the lease of a user's key, and the leases of a lock with that name, end within a
// millisecond, in all namespaces. It reports whether there were any. The Redis must have the clock
// of this process. oncetest uses it.
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

// expireHolders changes the leases in the string of a lock so that they have ended. The string
// keeps its last fence and its TTL. See lock.lua for its format.
func expireHolders(db Database, name string) bool {
	state, _ := db.Get(name) // empty if it is no string
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

// kindOf returns the letter of the kind of a name, and the tag of its key.
func kindOf(name string) (kind, tag string) {
	head, tag := SplitName(name)
	head = strings.TrimSuffix(head, ":{")
	return head[strings.LastIndexByte(head, ':')+1:], tag
}
