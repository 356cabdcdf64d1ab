package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// user and password are the credentials of the limited user; see [Limit].
const user, password = "app", "a-password-of-your-own"

// limits are the command-line arguments that make redis-server create the limited
// user. They are empty if Limit was not called. The extras are rights that each
// server receives after its start: a server refuses to start with an unknown right.
var limits, extras []string

// optional are the rights that some servers do not know.
var optional = []string{"+client|setinfo"}

// Limit makes all later clients of real servers log in as a limited user. The user
// has the rights in file, an ACL file for the prefix "app", with the given prefixes
// instead of "app". A command without the right fails. The test also fails when it
// ends if ACL LOG has an entry for the user.
//
// Commands that only tests send (KEYS, CONFIG, DEBUG ...) are sent as the default
// user, which may do anything; see [asAdmin]. Call Limit before any test.
func Limit(file string, prefixes ...string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if rule, ok := strings.CutPrefix(line, "user "+user+" on >"+password+" "); ok {
			limits = []string{"--user", user, "on", ">" + password}
			for word := range strings.FieldsSeq(rule) {
				if slices.Contains(optional, word) {
					extras = append(extras, word)
					continue
				}
				if !strings.Contains(word, user+":") {
					limits = append(limits, word)
					continue
				}
				for _, prefix := range prefixes {
					limits = append(limits, strings.ReplaceAll(word, user, prefix))
				}
			}
			return nil
		}
	}
	return fmt.Errorf("%s has no user %q", file, user)
}

// limited sets the credentials of the limited user, if Limit was called and opt has
// none.
func limited(opt *redis.Options) {
	if len(limits) > 0 && opt.Username == "" && opt.Password == "" {
		opt.Username, opt.Password = user, password
	}
}

// limit makes a client of the limited user send what only tests send as the default
// user; see [asAdmin].
func limit(t testing.TB, rdb *redis.Client) {
	t.Helper()
	if rdb.Options().Username != user {
		return
	}
	opt := *rdb.Options()
	opt.Username, opt.Password = "", ""
	admin := redis.NewClient(&opt)
	t.Cleanup(func() { _ = admin.Close() })
	rdb.AddHook(asAdmin{admin})
}

// asAdmin sends commands as the default user, except those in sentByUs: the commands
// that our packages send, with their scripts, and those that set up a connection.
// These are sent on the client's own connections, as the limited user.
type asAdmin struct{ admin *redis.Client }

var sentByUs = []string{"getrange", "set", "eval", "evalsha", "publish", "hello", "auth"}

func isOurs(cmd redis.Cmder) bool { return slices.Contains(sentByUs, cmd.Name()) }

func (asAdmin) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a asAdmin) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if isOurs(cmd) {
			return next(ctx, cmd)
		}
		return a.admin.Process(ctx, cmd)
	}
}

func (a asAdmin) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool { return !isOurs(cmd) }) {
			return next(ctx, cmds)
		}
		pipeline := a.admin.Pipeline()
		for _, cmd := range cmds {
			_ = pipeline.Process(ctx, cmd)
		}
		_, err := pipeline.Exec(ctx)
		return err
	}
}

// addExtras gives the limited user the extra rights that the running server knows.
// On a server that cannot deny a single subcommand (Redis 6.2), the user receives
// all of CLIENT, as docs/redis.acl says.
func (d *daemon) addExtras() error {
	if len(extras) == 0 {
		return nil
	}
	return d.tell(func(ctx context.Context, rdb *redis.Client) error {
		rights := extras
		if refuses(rdb.Do(ctx, "ACL", "SETUSER", "subcommands", "-client|tracking").Err()) {
			rights = []string{"+client"}
		}
		for _, right := range rights {
			if err := rdb.Do(ctx, "ACL", "SETUSER", user, right).Err(); err != nil && !refuses(err) {
				return err
			}
		}
		return rdb.Do(ctx, "ACL", "DELUSER", "subcommands").Err()
	})
}

// refuses reports whether err is an error reply of a server.
func refuses(err error) bool {
	_, answered := errors.AsType[redis.Error](err)
	return answered
}

// wantNoDenials fails the test if d has denied a command to the limited user. It
// ignores users that the test created, and a daemon that does not answer.
func wantNoDenials(t testing.TB, d *daemon) {
	t.Helper()
	if len(limits) == 0 {
		return
	}
	_ = d.tell(func(ctx context.Context, rdb *redis.Client) error {
		entries, err := rdb.ACLLog(ctx, 10).Result()
		for _, e := range entries {
			if e.Username != user {
				continue
			}
			t.Errorf("Redis has denied %q (%s, %s) to %q: %+v", e.Object, e.Reason, e.Context, e.Username, e.ClientInfo)
		}
		if err != nil {
			return err
		}
		return rdb.ACLLogReset(ctx).Err()
	})
}
