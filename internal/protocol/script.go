package protocol

import (
	"context"
	"crypto/sha1"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/breaker"
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

	// changeText is how the scripts begin that change a value.
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

	// The same with one key each, see apart.go.
	fillMeta        = newScript("fill", "local value, meta, staged = nil, KEYS[1], nil\n"+changeText+segmentText+fillText)
	invalidateValue = newScript("invalidate", "local value, meta, marks = KEYS[1], nil, nil\n"+changeText+invalidateText)
	invalidateMeta  = newScript("invalidate", "local value, meta, marks = nil, KEYS[1], nil\n"+changeText+invalidateText)
	invalidateMarks = newScript("invalidate", "local value, meta, marks = nil, nil, KEYS[1]\n"+changeText+invalidateText)
)

func init() {
	lockAcquire.apart, lockRelease.apart = firstKeyAlone(lockAcquire), firstKeyAlone(lockRelease)
	invalidate.apart = inSteps
	fill.apart, fill.patient = metaAlone, true // as it does less
}

// A script has its text and the hash by which the server knows it. It is not a
// [redis.Script], because that cannot share a pipeline with others and learn
// there that the server has forgotten it.
type script struct {
	op, text, hash string

	apart   apart // does its work while its keys are on two nodes; nil if nothing can
	patient bool  // it waits for half of the timeout first, see patience
}

func newScript(op, text string) *script {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // it is how Redis names scripts, not a safeguard
	return &script{op: op, text: text, hash: hex.EncodeToString(sum[:])}
}

// script runs a script, and a command right before it if there is one. A
// server that does not know the script is sent its text, once.
func (c *Client) script(ctx context.Context, s *script, before redis.Cmder, keys []string, argv ...any) (any, error) {
	args := append(make([]any, 0, 3+len(keys)+len(argv)), "evalsha", s.hash, len(keys))
	for _, k := range keys {
		args = append(args, k)
	}
	return c.evalsha(ctx, s, before, append(args, argv...))
}

// evalsha is script with the arguments of the command EVALSHA. If only the command
// before it failed, it returns the reply and the error of that.
func (c *Client) evalsha(ctx context.Context, s *script, before redis.Cmder, args []any) (any, error) {
	var reply any
	m := mark(args)
	started := time.Now()
	split := false
	send := func(within time.Duration) (err error) {
		if !split {
			reply, err = c.once(ctx, s, before, args, within)
			split = isApart(err) && s.apart != nil && time.Since(started) >= c.patience(s)
		}
		if split {
			reply, err = s.apart(ctx, c, args, within) // all of it: Redis has just answered
		}
		return err
	}
	err := m.unsentOr(c.persist(ctx, send(c.timeout), send))
	return reply, c.failed(ctx, call{s.op, firstKey(args), started}, err)
}

// firstKey returns the first key among the arguments of EVALSHA or EVAL.
func firstKey(args []any) string {
	key, _ := args[3].(string)
	return key
}

// notified returns the reply of a script, and reports a notification that the server
// refused; see notify.lua.
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

// once sends a script once, and again with its text to a server that does not know it.
func (c *Client) once(ctx context.Context, s *script, before redis.Cmder, args []any, within time.Duration) (any, error) {
	args[0], args[1] = "evalsha", s.hash
	reply, err := c.send(ctx, before, args, within)
	if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		args = append([]any{"eval", s.text}, args[2:]...)
		reply, err = c.send(ctx, before, args, within) // all of it: Redis has just answered
	}
	return c.notified(reply), err
}

// send sends a command EVALSHA or EVAL, and a command right before it if there is one.
func (c *Client) send(ctx context.Context, before redis.Cmder, args []any, within time.Duration) (any, error) {
	cmd := redis.NewCmd(ctx, args...)
	cmd.SetFirstKeyPos(3)
	cmds := []redis.Cmder{cmd}
	if before != nil {
		cmds = []redis.Cmder{before, cmd}
	}
	err := Discreet(c.run.Do(ctx, within, cmds...))
	if _, answered := errors.AsType[redis.Error](err); err != nil && !answered {
		return nil, err // the command may still be on its way, and must not be read
	}
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		err = cmd.Err()
	}
	return cmd.Val(), err
}

const (
	firstPause   = 5 * time.Millisecond
	longestPause = 100 * time.Millisecond
)

// persist goes on after an operation that failed with err: it sends it again,
// after pauses, until it succeeds, fails for good, or has failed for as long as
// timeout. All our operations may be sent twice, so a lost answer is no reason to
// give up. The time before the first failure does not count: it may have been
// spent in a queue.
func (c *Client) persist(ctx context.Context, err error, send func(within time.Duration) error) (last error) {
	started, wasCut := time.Now(), false
	defer func() {
		if e, ok := errors.AsType[interface {
			error
			NotSent() bool
		}](last); ok && wasCut && e.NotSent() {
			last = afterCutError{last}
		}
	}()
	for pause := firstPause; err != nil; pause = min(2*pause, longestPause) {
		switch {
		case breaker.IsOpen(err), isReadOnly(err) && c.replica.isKnown():
			return err
		case passing(err):
		case cut(err) && !wasCut:
			wasCut = true // once: go-redis itself has tried as often as it was told to
		default:
			return err
		}
		if left := c.timeout - time.Since(started); left < 2*pause {
			if isReadOnly(err) {
				c.replica.note()
			}
			return err
		}
		if !sleep(ctx, pause/2+rand.N(pause)) {
			return ctx.Err()
		}
		err = send(c.timeout - time.Since(started))
	}
	return nil
}

// afterCutError is the error of an operation of which an earlier attempt may have
// arrived: the connection ended before the answer came. batch.NotSent asks it.
type afterCutError struct{ error }

func (e afterCutError) Unwrap() error { return e.error }
func (afterCutError) NotSent() bool   { return false }

// Discreet returns an error without the arguments that the server quotes in it. To a
// command that it does not know, because it was renamed or a proxy has no such command,
// the server answers with the first arguments, which may be a key and a value. A refused
// CLIENT TRACKING names the prefixes.
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

// passing reports whether an error is a state of the server that ends soon: a
// slot on its way to another node, a failover, a restart.
func passing(err error) bool {
	return hasCode(err, "TRYAGAIN", "MOVED", "ASK", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN")
}

// cut reports whether a connection ended before the answer came. A connection
// that could not be made in the first place is another matter: that one will
// most likely not be made the next moment either.
func cut(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return false
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// An answer reads a script's reply, which may have any shape: a proxy or a
// command of somebody else's may have come between.
type answer struct {
	reply any
	bad   bool
}

func (a *answer) at(i int) any {
	list, ok := a.reply.([]any)
	if !ok || i >= len(list) {
		a.bad = true
		return nil
	}
	return list[i]
}

func (a *answer) text(i int) string {
	s, ok := a.at(i).(string)
	if !ok {
		a.bad = true
	}
	return s
}

func (a *answer) number(i int) int64 {
	n, err := strconv.ParseInt(a.text(i), 10, 64)
	if err != nil {
		a.bad = true
	}
	return n
}

func (a *answer) millis(i int) time.Duration {
	n, ok := a.at(i).(int64)
	if !ok {
		a.bad = true
	}
	return time.Duration(min(max(n, 0), int64(100*365*24*time.Hour/time.Millisecond))) * time.Millisecond
}

// optionalTime reads a time that only some answers have.
func (a *answer) optionalTime(i int) time.Time {
	if list, ok := a.reply.([]any); ok && i >= len(list) {
		return time.Time{}
	}
	return time.UnixMicro(a.number(i))
}

func (a *answer) err() error {
	if !a.bad {
		return nil
	}
	return errShape(a.reply)
}

func errShape(reply any) error {
	return fmt.Errorf("a script answered in a shape that is not ours (%T)", reply) // not its text, which may be a value
}
