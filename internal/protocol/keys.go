package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strings"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// longest is the length in bytes above which a name contains the hash of the key and not its
// text. Shorter names stay readable in redis-cli.
const longest = 200

// A Namespace makes the names of one prefix, and the digests of one schema. Two names are equal
// only if prefix, key and kind are; see [Namespace.Key].
type Namespace struct {
	value, meta, marks, staged string // up to the "{" of the hash tag, which is included
	lock, queue                string // the same for a lock
	channels                   string // a channel name without the process
	changes                    string // the channel of changed values
	seed                       uint64 // for the digests
}

// NewNamespace returns the namespace of a prefix and a schema. Processes with the same prefix
// share all names, whatever their schema: a value has a segment for each schema.
func NewNamespace(prefix, schema string) *Namespace {
	p := escape(prefix)
	return &Namespace{
		seed:     envelope.Seed(schema),
		value:    p + ":v:{",
		meta:     p + ":m:{",
		marks:    p + ":u:{",
		staged:   p + ":t:{",
		lock:     p + ":l:{",
		queue:    p + ":q:{",
		channels: p + ":b:",
		changes:  p + ":i",
	}
}

// A Key has the names in Redis of one key of the user.
type Key struct {
	Value string // name of the value

	ns     *Namespace
	head   int // where in Value the escaped key begins
	digest uint64
}

// Key returns the names of a user's key, which may contain any bytes.
//
// Two keys never share a name. Prefix and key are escaped, so they contain no brace: the first "{"
// of a name ends its head. In the head, the last but one ":" ends the prefix.
func (ns *Namespace) Key(user string) Key {
	name := ns.value + Tag(user) + "}"
	return Key{Value: name, ns: ns, head: len(ns.value), digest: envelope.Digest(ns.seed, name)}
}

// Digest returns the digest of the key's segments; see [envelope.Digest].
func (k Key) Digest() uint64 { return k.digest }

// Tag returns the form of a user's key in its names. This is the key itself, without an
// allocation, unless it is empty, longer than longest, or has bytes that are escaped.
func Tag(user string) string {
	tag := escape(user)
	switch {
	case tag == "":
		return "%" // Redis ignores an empty hash tag
	case len(tag) > longest:
		sum := sha256.Sum256([]byte(user))
		return "%#" + hex.EncodeToString(sum[:])
	}
	return tag
}

// tagHandles is the length in bytes from which on a handle is a tag. It is the length of a hash, so
// no shorter handle is one.
const tagHandles = 2 + 2*sha256.Size

// Handle returns the form of a user's key inside a process. Two keys never share a handle. For a
// short key it is the key itself, and its bytes are not read.
func Handle(user string) string {
	if len(user) < tagHandles {
		return user
	}
	return Tag(user)
}

// HandleOf returns the handle of the key that has a tag.
func HandleOf(tag string) string {
	if !strings.Contains(tag, "%") || len(tag) == tagHandles && tag[1] == '#' {
		return tag
	}
	if user, ok := unescape(tag); ok && len(user) < tagHandles {
		return user
	}
	return tag
}

// A Lock has the names in Redis of one lock of the user.
type Lock struct {
	keys *[2]any // lock and queue: strings, in the type of command arguments
}

// Lock returns the names of a user's lock, whose name may contain any bytes.
func (ns *Namespace) Lock(user string) Lock {
	tag := Tag(user)
	all := ns.lock + tag + "}" + ns.queue + tag + "}" // one allocation for two names
	queue := len(ns.lock) + len(tag) + 1
	return Lock{keys: &[2]any{all[:queue], all[queue:]}}
}

// SplitName returns the prefix of the name of a value, see [Namespace.Values], and the tag of its
// key. Both are empty if name has no tag at its end.
func SplitName(name string) (values, tag string) {
	i := strings.IndexByte(name, '{')
	if i < 0 || name[len(name)-1] != '}' {
		return "", ""
	}
	return name[:i+1], name[i+1 : len(name)-1]
}

// Values returns the prefix of the names of all values. No other name has it, in any namespace.
func (ns *Namespace) Values() string { return ns.value }

// Changes returns the channel on which the scripts publish the names of values that they change,
// if the node of the key has a subscriber.
func (ns *Namespace) Changes() string { return ns.changes }

// Heartbeats returns the prefix of the names of a process's heartbeats, which is also their
// channel. changes is the channel of changes of their namespace.
func Heartbeats(changes, process string) string {
	return strings.TrimSuffix(changes, ":i") + ":h:" + process + ":"
}

// IsHeartbeats reports whether a channel carries heartbeats; see [Heartbeats].
func IsHeartbeats(channel string) bool {
	return strings.HasSuffix(channel, ":") && strings.Contains(channel, ":h:")
}

func (k Key) meta() string { return k.ns.meta + k.Value[k.head:] }

func (k Key) marks() string { return k.ns.marks + k.Value[k.head:] }

func (k Key) staged(owner string) string { return k.ns.staged + k.Value[k.head:] + owner }

// Channel returns the channel to which a process is subscribed for its notifications.
func (ns *Namespace) Channel(process string) string { return ns.channels + process }

// special says which bytes are escaped.
var special = func() (special [256]bool) {
	for c := range ' ' {
		special[c] = true
	}
	for _, c := range "{}%\x7f" {
		special[c] = true
	}
	return special
}()

// escape writes braces, percent signs and control bytes as %XX.
func escape(s string) string {
	i := 0
	for i < len(s) && !special[s[i]] {
		i++
	}
	if i == len(s) {
		return s
	}
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	b.WriteString(s[:i])
	for ; i < len(s); i++ {
		if c := s[i]; !special[c] {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	return b.String()
}

// unescape is the inverse of escape. It fails for a text that escape cannot return.
func unescape(tag string) (user string, ok bool) {
	if tag == "%" {
		return "", true
	}
	user, err := url.PathUnescape(tag)
	return user, err == nil
}
