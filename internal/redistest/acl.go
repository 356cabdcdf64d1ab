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

// user and password are of whom [Limit] is about.
const user, password = "app", "a-password-of-your-own"

// limits has what Limit was given, as redis-server takes it; nothing without it.
// Servers that do not know an extra right refuse to start with it: each gets the
// extras when it runs.
var limits, extras []string

// optional are the rights that only some servers know.
var optional = []string{"+client|setinfo"}

// Limit has all clients of real servers, from now on, be the user that an ACL
// file for the prefix "app" describes, with the given prefixes in the place of
// that. A command that the user may not use fails, and its test fails when it
// ends, if nobody has noticed: nothing may be in ACL LOG.
//
// What only tests send (KEYS, CONFIG, DEBUG ...) is sent as the default user,
// who may do anything; see [asAdmin]. To be called before any test.
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

// limited makes a client that is to be made that of the limited user, and limit
// lets it do what tests do.
func limited(opt *redis.Options) {
	if len(limits) > 0 && opt.Username == "" && opt.Password == "" {
		opt.Username, opt.Password = user, password
	}
}

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

// asAdmin sends commands as the default user, but for those that our packages
// send: these are the limited user's, and what their scripts do. Those that
// introduce a connection are of the connection that go-redis sends them on.
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

// addExtras gives the limited user of a server that runs the extra rights, as far
// as the server knows them. A server that can take no subcommand away (Redis 6.2)
// does not limit the user's CLIENT at all, as docs/redis.acl says.
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

// refuses reports whether err is what a server answered.
func refuses(err error) bool {
	_, answered := errors.AsType[redis.Error](err)
	return answered
}

// wantNoDenials fails the test if d has denied anything to the limited user: what
// it denies to users whom a test has made is that test's affair. A daemon that does
// not answer has nothing to say.
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
