package protocol

import (
	"context"
	"crypto/sha1"
	_ "embed"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed acquire.lua
	acquireText string
	//go:embed fill.lua
	fillText string
	//go:embed release.lua
	releaseText string
	//go:embed renew.lua
	renewText string
	//go:embed invalidate.lua
	invalidateText string
	//go:embed set.lua
	setText string
	//go:embed lease.lua
	leaseText string
	//go:embed notify.lua
	notifyText string
	//go:embed segment.lua
	segmentText string
	//go:embed announce.lua
	announceText string
	//go:embed lock_state.lua
	lockStateText string
	//go:embed lock_free.lua
	lockFreeText string
	//go:embed lock_only.lua
	lockOnlyText string
	//go:embed lock.lua
	lockText string
	//go:embed lock_acquire.lua
	lockAcquireText string
	//go:embed lock_release.lua
	lockReleaseText string
	//go:embed lock_renew.lua
	lockRenewText string

	// changeText is the beginning of the scripts that change a value.
	changeText = leaseText + notifyText + announceText

	acquire    = newScript("acquire", leaseText+acquireText)
	fill       = newScript("fill", "local value, meta, staged = KEYS[1], KEYS[2], KEYS[3]\n"+changeText+segmentText+fillText)
	release    = newScript("release", leaseText+notifyText+releaseText)
	renew      = newScript("renew", leaseText+renewText)
	invalidate = newScript("invalidate", "local value, meta, marks = KEYS[1], KEYS[2], KEYS[3]\n"+changeText+invalidateText)
	set        = newScript("set", changeText+setText)

	lockAcquire = newScript("lock", lockStateText+lockFreeText+notifyText+lockText+lockAcquireText)
	lockRelease = newScript("unlock", lockStateText+lockOnlyText+notifyText+lockText+lockReleaseText)
	lockRenew   = newScript("renew lock", lockStateText+notifyText+lockText+lockRenewText)

	// The same with one key each, see tryagain.go.
	fillMeta        = newScript("fill", "local value, meta, staged = nil, KEYS[1], nil\n"+changeText+segmentText+fillText)
	invalidateValue = newScript("invalidate", "local value, meta, marks = KEYS[1], nil, nil\n"+changeText+invalidateText)
	invalidateMeta  = newScript("invalidate", "local value, meta, marks = nil, KEYS[1], nil\n"+changeText+invalidateText)
	invalidateMarks = newScript("invalidate", "local value, meta, marks = nil, nil, KEYS[1]\n"+changeText+invalidateText)
)

func init() {
	lockAcquire.perKey, lockRelease.perKey = lockKeyOnly(lockAcquire), lockKeyOnly(lockRelease)
	invalidate.perKey = invalidatePerKey
	fill.perKey, fill.perKeyDoesLess = metaOnly, true
}

// A script has its text and the hash that names it in EVALSHA. It is not a [redis.Script]: in a
// pipeline, that cannot send its text when the server answers NOSCRIPT.
type script struct {
	op, text, hash string

	perKey         perKey // does its work while its keys are on two nodes; nil if nothing can
	perKeyDoesLess bool   // so the script is sent for longer first, see movingFor
}

func newScript(op, text string) *script {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // Redis names scripts by it; it protects nothing
	return &script{op: op, text: text, hash: hex.EncodeToString(sum[:])}
}

// script runs a script. If before is not nil, it is sent right before the script. If the server
// does not know the script, script sends the text, once.
func (c *Client) script(ctx context.Context, s *script, before redis.Cmder, keys []string, argv ...any) (any, error) {
	args := append(make([]any, 0, 3+len(keys)+len(argv)), "evalsha", s.hash, len(keys))
	for _, k := range keys {
		args = append(args, k)
	}
	return c.evalsha(ctx, s, before, append(args, argv...))
}

// evalsha is script with the arguments of the command EVALSHA. If before failed and the script
// did not, it returns the script's reply and the error of before.
func (c *Client) evalsha(ctx context.Context, s *script, before redis.Cmder, args []any) (any, error) {
	var reply any
	flag := flagSent(args)
	started := time.Now()
	perKey := false
	send := func(within time.Duration) (err error) {
		if !perKey {
			reply, err = c.once(ctx, s, before, args, within)
			perKey = isTryAgain(err) && s.perKey != nil && time.Since(started) >= c.movingFor(s)
		}
		if perKey {
			reply, err = s.perKey(ctx, c, args, within) // with the whole limit: Redis has just answered
		}
		return err
	}
	err := flag.unsentOr(c.persist(ctx, send(c.timeout), send))
	return reply, c.failed(ctx, call{s.op, firstKey(args), started}, err)
}

// firstKey returns the first key among the arguments of EVALSHA or EVAL.
func firstKey(args []any) string {
	key, _ := args[3].(string)
	return key
}

// notified returns the reply of a script. If the server refused its notification, it calls
// Unnotified; see notify.lua.
func (c *Client) notified(reply any) any {
	list, ok := reply.([]any)
	if !ok || len(list) != 3 || list[0] != "unnotified" {
		return reply
	}
	if text, ok := list[1].(string); ok && c.Unnotified != nil {
		c.Unnotified(Discreet(answeredError(text)))
	}
	return list[2]
}

// once sends a script once, and again with its text if the server does not know it.
func (c *Client) once(ctx context.Context, s *script, before redis.Cmder, args []any, within time.Duration) (any, error) {
	args[0], args[1] = "evalsha", s.hash
	reply, err := c.send(ctx, before, args, within)
	if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		args = append([]any{"eval", s.text}, args[2:]...)
		reply, err = c.send(ctx, before, args, within) // with the whole limit: Redis has just answered
	}
	return c.notified(reply), err
}

// send sends EVALSHA or EVAL. If before is not nil, it is sent right before that.
func (c *Client) send(ctx context.Context, before redis.Cmder, args []any, within time.Duration) (any, error) {
	cmd := redis.NewCmd(ctx, args...)
	cmd.SetFirstKeyPos(3)
	cmds := []redis.Cmder{cmd}
	if before != nil {
		cmds = []redis.Cmder{before, cmd}
	}
	err := Discreet(c.run.Do(ctx, within, cmds...))
	if _, answered := errors.AsType[redis.Error](err); err != nil && !answered {
		return nil, err // the command may still be in flight, so its reply must not be read
	}
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		err = cmd.Err()
	}
	return cmd.Val(), err
}

// Discreet returns an error without the arguments that the server quotes in it. If a command is
// unknown, because it was renamed or a proxy lacks it, the error contains the first arguments:
// they may be a key and a value. The refusal of CLIENT TRACKING contains prefixes.
func Discreet(err error) error {
	answered, ok := errors.AsType[redis.Error](err)
	if !ok {
		return err
	}
	text, _, quotes := strings.Cut(answered.Error(), ", with args beginning with")
	if strings.HasPrefix(text, "ERR Prefix '") {
		text, quotes = "ERR a prefix overlaps with another one", true
	}
	if quotes {
		return answeredError(text)
	}
	return err
}

// An answeredError is a [redis.Error].
type answeredError string

func (e answeredError) Error() string { return string(e) }
func (answeredError) RedisError()     {}
