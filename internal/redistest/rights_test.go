package redistest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// aclFile has the rights that the documentation recommends.
const aclFile = "../../docs/redis.acl"

// rightsOf returns the rights of the user in an ACL file, and its other rules.
func rightsOf(t *testing.T, file string) (rights, rest []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rules, ok := strings.Cut(string(text), "\nuser app on >a-password-of-your-own ")
	if !ok {
		t.Fatalf("%s has no user app", file)
	}
	rules, _, _ = strings.Cut(rules, "\n")
	for rule := range strings.FieldsSeq(rules) {
		if strings.HasPrefix(rule, "+") {
			rights = append(rights, rule)
		} else {
			rest = append(rest, rule)
		}
	}
	return rights, rest
}

// A restricted user has two prefixes of its own, and some of the rights.
type restricted struct {
	t      *testing.T
	name   string // also its first prefix; the second one has a 2 appended
	admin  redis.Cmdable
	client func() redis.UniversalClient // of the user
	limit  time.Duration                // RedisTimeout
}

// user creates a user with the rights of aclFile, except the right without.
func user(t *testing.T, ctx context.Context, admin *redis.Client, name, without string) {
	t.Helper()
	rights, rest := rightsOf(t, aclFile)
	args := []any{"acl", "setuser", name, "reset", "on", ">secret"}
	for _, rule := range rest {
		args = append(args, strings.ReplaceAll(rule, "app", name))
		if rule[0] == '~' || rule[0] == '&' {
			args = append(args, strings.ReplaceAll(rule, "app", name+"2"))
		}
	}
	for _, right := range rights {
		if right != without && right != "+client|setinfo" {
			args = append(args, right)
		}
	}
	if err := admin.Do(ctx, args...).Err(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
}

// denied returns the commands that a server denied to a user.
func denied(t *testing.T, admin *redis.Client, name string) []string {
	t.Helper()
	entries, err := admin.ACLLog(t.Context(), 1000).Result()
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, e := range entries {
		if e.Username == name {
			commands = append(commands, e.Object)
		}
	}
	return commands
}

// await calls ok until it returns true, for at most half a second. When a right is
// missing, ok may never return true.
func await(ok func() bool) {
	for end := time.Now().Add(500 * time.Millisecond); !ok() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

func (u *restricted) loader(rdb redis.UniversalClient, prefix string, change ...func(*fetchonce.Options[string])) *fetchonce.Loader[string] {
	u.t.Helper()
	opt := fetchonce.Options[string]{Prefix: prefix, RedisTimeout: u.limit, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opt)
	}
	l, err := fetchonce.New(rdb, opt)
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { _ = l.Close() })
	return l
}

// work uses Loaders and Lockers as users do. It returns the errors.
func (u *restricted) work(ctx context.Context) error {
	return errors.Join(u.load(ctx), u.missing(ctx), u.change(ctx), u.near(ctx), u.lock(ctx))
}

// load fetches in one process while another process waits for the value.
func (u *restricted) load(ctx context.Context) error {
	here, there := u.loader(u.client(), u.name), u.loader(u.client(), u.name)
	fetching, fetch := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	var first, second error
	all.Go(func() {
		_, first = here.Get(ctx, "k", func(context.Context, string) (string, error) {
			close(fetching)
			<-fetch
			return "v", nil
		})
	})
	select {
	case <-fetching:
	case <-time.After(2 * time.Second):
	}
	all.Go(func() {
		_, second = there.Get(ctx, "k", func(context.Context, string) (string, error) { return "v", nil })
	})
	await(func() bool { return u.admin.HLen(u.t.Context(), u.name+":m:{k}").Val() > 2 })
	close(fetch)
	all.Wait()
	_, third := here.GetMany(ctx, []string{"k", "other"}, func(context.Context, []string) (map[string]string, error) {
		return map[string]string{"other": strings.Repeat("large", 100_000)}, nil
	})
	if _, err := here.Peek(ctx, "k"); err != nil {
		third = errors.Join(third, err)
	}
	return errors.Join(first, second, third)
}

// missing gets absent keys until a Get skips the lookup, and then stores a failure.
func (u *restricted) missing(ctx context.Context) error {
	l := u.loader(u.client(), u.name, func(opt *fetchonce.Options[string]) { opt.ErrorTTL = time.Minute })
	for i := range 40 {
		_, err := l.Get(ctx, fmt.Sprint("missing", i), func(context.Context, string) (string, error) { return "", fetchonce.ErrNotFound })
		if !errors.Is(err, fetchonce.ErrNotFound) {
			return err
		}
	}
	setErr := u.loader(u.client(), u.name).Set(ctx, "kept", "v")
	boom := errors.New("boom")
	fail := func(context.Context, string) (string, error) { return "", boom }
	_, err := l.Get(ctx, "kept", fail)
	_, _ = l.Get(ctx, "fails", fail)
	if _, again := l.Get(ctx, "fails", fail); again == nil || !strings.Contains(again.Error(), "boom") {
		err = errors.Join(err, fmt.Errorf("the failure that is kept is %w", again))
	}
	return errors.Join(setErr, err)
}

// change changes values, one of them during its fetch.
func (u *restricted) change(ctx context.Context) error {
	l := u.loader(u.client(), u.name)
	fail := func(context.Context, string) (string, error) { return "", fetchonce.ErrNotFound }
	var errs []error
	errs = append(errs, l.Set(ctx, "k", "v"), l.Set(ctx, "k", strings.Repeat("large", 100_000)))
	errs = append(errs, l.Update(ctx, "k", func(ctx context.Context) error {
		if _, err := l.Get(ctx, "k", fail); !errors.Is(err, fetchonce.ErrNotFound) {
			return err
		}
		return nil
	}), l.Delete(ctx, "k"))
	// After a value of another type, the next Get checks the type of the key.
	u.admin.Set(u.t.Context(), u.name+":m:{odd}", "of another program", time.Minute)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, _ = l.Get(short, "odd", fail)
	// An unusable value is replaced.
	u.admin.Set(u.t.Context(), u.name+":v:{odder}", strings.Repeat("?", 100), time.Minute)
	if _, err := l.Get(ctx, "odder", fail); !errors.Is(err, fetchonce.ErrNotFound) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// near uses near caches, and closes one of two Loaders of a client.
func (u *restricted) near(ctx context.Context) error {
	rdb := u.client()
	withNear := func(opt *fetchonce.Options[string]) { opt.Near = fetchonce.Near{Entries: 10, TTL: time.Minute} }
	first, second := u.loader(rdb, u.name, withNear), u.loader(rdb, u.name+"2", withNear)
	fetch := func(context.Context, string) (string, error) { return "v", nil }
	_, err := first.Get(ctx, "near", fetch)
	_, err2 := second.Get(ctx, "near", fetch)
	await(func() bool {
		v, err := first.Load(ctx, "near", func(ctx context.Context, f *fetchonce.Fetch[string]) (string, error) { return fetch(ctx, f.Key) })
		return err == nil && v.Source == fetchonce.SourceNear
	})
	return errors.Join(err, err2, second.Close())
}

// lock makes three processes wait for one lock. One of them stops waiting.
func (u *restricted) lock(ctx context.Context) error {
	var errs []error
	var mu sync.Mutex
	add := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	held := make(chan struct{})
	release := make(chan struct{})
	leaving, leave := context.WithCancel(ctx)
	var all sync.WaitGroup
	for i := range 4 {
		lk, err := fetchonce.NewLocker(u.client(), fetchonce.LockOptions{
			Prefix: u.name, RedisTimeout: u.limit, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			u.t.Fatal(err)
		}
		u.t.Cleanup(func() { _ = lk.Close() })
		ctx := ctx
		if i == 3 {
			ctx = leaving
		}
		all.Go(func() {
			err := lk.Do(ctx, "it", func(context.Context) error {
				if i == 0 {
					close(held)
					<-release
				}
				return nil
			})
			if i < 3 {
				add(err)
			}
		})
		if i == 0 {
			select {
			case <-held:
			case <-time.After(2 * time.Second):
			}
		} else {
			await(func() bool { return u.waiters() == int64(i) })
		}
	}
	leave()
	await(func() bool { return u.waiters() == 2 })
	close(release)
	all.Wait()
	return errors.Join(errs...)
}

// waiters returns the number of waiters in the lock's queue. They have positive scores.
func (u *restricted) waiters() int64 {
	return u.admin.ZCount(u.t.Context(), u.name+":q:{it}", "(0", "+inf").Val()
}

// TestEachRightIsNeeded runs work without each right of docs/redis.acl in turn. If the
// server denies no command, the file has a right that nothing needs.
func TestEachRightIsNeeded(t *testing.T) {
	r := redistest.Server(t)
	admin := r.Client()
	for _, without := range append([]string{"", "+eval"}, serverRights(t)...) {
		name := "user" + strings.NewReplacer("+", "", "|", "").Replace(without)
		t.Run(name, func(t *testing.T) {
			if without == "+eval" {
				admin.ScriptFlush(t.Context())
			} else {
				t.Parallel()
			}
			user(t, t.Context(), admin, name, without)
			u := &restricted{t: t, name: name, limit: limitOf(without), admin: admin, client: func() redis.UniversalClient {
				return r.Client(func(opt *redis.Options) { opt.Username, opt.Password = name, "secret" })
			}}
			u.wantDenied(without, func() []string { return denied(t, admin, name) })
		})
	}
}

// wantDenied repeats work until Redis denies a command because the right is missing.
// With all rights, Redis denies none and work returns no error.
func (u *restricted) wantDenied(without string, denied func() []string) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), time.Minute)
	defer cancel()
	worked := make(chan error, 1)
	go func() { worked <- u.work(ctx) }()
	command := strings.TrimPrefix(without, "+")
	for {
		select {
		case err := <-worked:
			switch commands := denied(); {
			case without == "" && (err != nil || len(commands) > 0):
				u.t.Errorf("with all rights %v were denied, and the error is %v", commands, err)
			case without != "" && !slices.Contains(commands, command):
				u.t.Errorf("without %s, Redis denied %v: the right is not needed, or work does not need it", without, commands)
			}
			return
		case <-time.After(20 * time.Millisecond):
			if without != "" && slices.Contains(denied(), command) {
				cancel()
			}
		}
	}
}

// limitOf returns the RedisTimeout of work. It is short if a right is missing, because
// cleanup after a denied command can take RedisTimeout.
func limitOf(without string) time.Duration {
	if without == "" {
		return 10 * time.Second
	}
	return time.Second
}

// serverRights returns the rights that a server without a cluster needs.
func serverRights(t *testing.T) []string {
	t.Helper()
	rights, _ := rightsOf(t, aclFile)
	return slices.DeleteFunc(rights, func(right string) bool {
		return right == "+eval" || right == "+client|setinfo" || right == "+command" || strings.HasPrefix(right, "+cluster")
	})
}

func TestEachRightForAClusterIsNeeded(t *testing.T) {
	m := redistest.Cluster(t)
	var admins []*redis.Client
	for _, node := range m.Nodes() {
		admins = append(admins, node.Client())
	}
	rights, _ := rightsOf(t, aclFile)
	for i, without := range append([]string{""}, rights...) {
		if without != "" && without != "+command" && !strings.HasPrefix(without, "+cluster") {
			continue
		}
		t.Run(without, func(t *testing.T) {
			name := fmt.Sprint("user", i)
			for _, node := range admins {
				user(t, t.Context(), node, name, without)
			}
			u := &restricted{t: t, name: name, limit: limitOf(without), admin: m.Client(), client: func() redis.UniversalClient {
				return m.Client(func(opt *redis.ClusterOptions) { opt.Username, opt.Password = name, "secret" })
			}}
			u.wantDenied(without, func() (commands []string) {
				for _, node := range admins {
					commands = append(commands, denied(t, node, name)...)
				}
				return commands
			})
		})
	}
}

// TestNestedPrefixesShareNoKeys checks the rights of prefix a. They allow no key and no
// channel of a longer prefix that starts with "a:".
func TestNestedPrefixesShareNoKeys(t *testing.T) {
	r := redistest.Server(t)
	admin := r.Client()
	user(t, t.Context(), admin, "a", "")
	rdb := r.Client(func(opt *redis.Options) { opt.Username, opt.Password = "a", "secret" })
	for _, kind := range []string{"v", "m", "u", "t", "l", "q", "w"} {
		if err := rdb.Exists(t.Context(), "a:"+kind+":{k}").Err(); err != nil {
			t.Errorf("kind %s of the user's own prefix: %v", kind, err)
		}
		for _, prefix := range []string{"a:b", "a:v", "a:other", "a:v:w", "b"} {
			if err := rdb.Exists(t.Context(), prefix+":"+kind+":{k}").Err(); !redis.HasErrorPrefix(err, "NOPERM") {
				t.Errorf("kind %s of prefix %s: %v, want NOPERM", kind, prefix, err)
			}
		}
	}
	for channel, allowed := range map[string]bool{
		"a:b:process": true, "a:i": true, "a:h:process:": true, "a:other:i": false, "a:other:b:process": false, "b:i": false,
	} {
		if err := rdb.Publish(t.Context(), channel, "").Err(); (err == nil) != allowed {
			t.Errorf("PUBLISH to %s: %v", channel, err)
		}
	}
}

// A user with the right to CLIENT TRACKING receives the names of all keys that change,
// including keys that it may not read, as SECURITY.md says.
func TestTrackersLearnTheNamesOfAllKeys(t *testing.T) {
	r := redistest.TCPServer(t)
	admin := r.Client()
	user(t, t.Context(), admin, "a", "")
	c, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "HELLO 3 AUTH a secret\r\nCLIENT TRACKING ON BCAST\r\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(c)
	found := func(want string) bool {
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "-") {
				t.Fatal(lines.Text())
			}
			if lines.Text() == want {
				return true
			}
		}
		return false
	}
	if !found("+OK") {
		t.Fatal("tracking is not on: ", lines.Err())
	}
	admin.Set(t.Context(), "payroll:v:{alice}", "secret", 0)
	if !found("payroll:v:{alice}") {
		t.Error("the tracker did not learn the name of the key: ", lines.Err())
	}
}
