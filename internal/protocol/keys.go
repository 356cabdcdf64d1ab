package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strings"

	"github.com/fetchonce/fetchonce/internal/envelope"
)

// longest is the length in bytes above which a key's text is replaced by its
// hash: names stay readable in redis-cli, and bounded.
const longest = 200

// A Namespace makes the names of one prefix, and the digests of one schema. No two different
// (prefix, key, kind) have the same name; see [Namespace.Key].
type Namespace struct {
	value, meta, marks, staged string // up to and with the "{" of the hash tag
	lock, queue                string // of a lock, likewise
	channels                   string // channel names without the process
	changes                    string // the channel of changed values
	seed                       uint64 // of the digests
}

// NewNamespace returns the namespace of a prefix and a schema. Processes with
// the same prefix share all names, whatever their schema: a value has a segment for each.
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

// A Key is one key of a user's under its names in Redis.
type Key struct {
	Value string // name of the value

	ns     *Namespace
	head   int // where in Value the escaped key begins
	digest uint64
}

// Key returns the names of a user's key, which may be any bytes.
//
// The names are injective: the key is escaped so that it has no brace, so the
// first "{" of a name ends its head; in the head, the last but one ":" ends the prefix,
// whatever the prefix is.
func (ns *Namespace) Key(user string) Key {
	name := ns.value + Tag(user) + "}"
	return Key{Value: name, ns: ns, head: len(ns.value), digest: envelope.Digest(ns.seed, name)}
}

// Digest returns the digest of the key's segments; see [envelope.Digest].
func (k Key) Digest() uint64 { return k.digest }

// Tag returns what stands for a user's key in all its names. It is the key
// itself, and costs no allocation, unless that is empty or long or has bytes
// that are escaped.
func Tag(user string) string {
	tag := escape(user)
	switch {
	case tag == "":
		return "%" // an empty hash tag would not be one
	case len(tag) > longest:
		sum := sha256.Sum256([]byte(user))
		return "%#" + hex.EncodeToString(sum[:])
	}
	return tag
}

// handles is the length in bytes from which on a handle is a tag: no key that is
// shorter becomes a hash, and no hash is that short.
const handles = 2 + 2*sha256.Size

// Handle returns what stands for a user's key inside a process, where no two keys
// have the same. For most it is the key itself, without a look at its bytes.
func Handle(user string) string {
	if len(user) < handles {
		return user
	}
	return Tag(user)
}

// HandleOf returns the handle of the key that a tag stands for.
func HandleOf(tag string) string {
	if !strings.Contains(tag, "%") || len(tag) == handles && tag[1] == '#' {
		return tag
	}
	if user, ok := unescape(tag); ok && len(user) < handles {
		return user
	}
	return tag
}

// A Lock is one lock of a user's under its names in Redis.
type Lock struct {
	keys *[2]any // the names of lock and queue: strings, as arguments of a command
}

// Lock returns the names of a lock of a user's, which may have any bytes for a
// name.
func (ns *Namespace) Lock(user string) Lock {
	tag := Tag(user)
	all := ns.lock + tag + "}" + ns.queue + tag + "}" // made at once
	queue := len(ns.lock) + len(tag) + 1
	return Lock{keys: &[2]any{all[:queue], all[queue:]}}
}

// SplitName returns how the name of a value begins, see [Namespace.Values], and
// the tag of its key. What is not the name of a value has neither.
func SplitName(name string) (values, tag string) {
	i := strings.IndexByte(name, '{')
	if i < 0 || name[len(name)-1] != '}' {
		return "", ""
	}
	return name[:i+1], name[i+1 : len(name)-1]
}

// Values returns how the names of all values begin. No other name does, of
// whatever namespace.
func (ns *Namespace) Values() string { return ns.value }

// Changes returns the channel on which the scripts tell the names of values that
// they change, if anybody listens on the node of the key.
func (ns *Namespace) Changes() string { return ns.changes }

// Heartbeats returns the prefix of the names of a process's heartbeats, in the namespace with
// that channel of changes. It is also their channel.
func Heartbeats(changes, process string) string {
	return strings.TrimSuffix(changes, ":i") + ":h:" + process + ":"
}

// IsHeartbeats reports whether a channel is one of heartbeats; see [Heartbeats].
func IsHeartbeats(channel string) bool {
	return strings.HasSuffix(channel, ":") && strings.Contains(channel, ":h:")
}

func (k Key) meta() string { return k.ns.meta + k.Value[k.head:] }

func (k Key) marks() string { return k.ns.marks + k.Value[k.head:] }

func (k Key) staged(owner string) string { return k.ns.staged + k.Value[k.head:] + owner }

// Channel returns the name of the channel on which a process listens.
func (ns *Namespace) Channel(process string) string { return ns.channels + process }

// special has the bytes that are always escaped.
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

// unescape takes back what escape did to a key. It cannot with what no escape made.
func unescape(tag string) (user string, ok bool) {
	if tag == "%" {
		return "", true
	}
	user, err := url.PathUnescape(tag)
	return user, err == nil
}
