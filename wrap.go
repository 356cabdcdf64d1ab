package fetchonce

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/fetchonce/fetchonce/internal/keytext"
)

// A Func is a function of one argument whose results a [Loader] stores. It is made by [Wrap],
// and is safe for concurrent use.
type Func[A, V any] struct {
	loader *Loader[V]
	key    func(A) (string, error)
	fetch  func(ctx context.Context, arg A) (V, error)
}

// Wrap returns a Func that loads the results of fetch through a Loader. The key of an argument
// is what key returns for it; without key, what [Key] returns. A function of several
// arguments takes a struct of them.
//
// Functions that are wrapped with the same Loader, or with Loaders of the same Prefix, share
// their keys: give each function a Loader of its own.
//
// Wrap panics with an [*Error] if l or fetch is nil; or if key is nil and Key does not accept
// an A, for example one with a func in it.
func Wrap[A, V any](l *Loader[V], key func(A) string, fetch func(ctx context.Context, arg A) (V, error)) Func[A, V] {
	switch {
	case l == nil:
		panic(&Error{Op: "wrap", Err: errors.New("the Loader is nil")})
	case fetch == nil:
		panic(&Error{Op: "wrap", Err: errors.New("the fetch is nil")})
	}
	return Func[A, V]{loader: l, key: keyMaker("wrap", key), fetch: fetch}
}

// Get is [Loader.Get] of the key of arg. If callers with different arguments of the same key
// wait at once, the argument of one is used.
//
// Without a key function, the error is an [*Error] if [Key] does not accept what an interface
// in arg holds, or if arg contains itself.
func (f Func[A, V]) Get(ctx context.Context, arg A) (V, error) {
	key, err := f.key(arg)
	if err != nil {
		var zero V
		return zero, err
	}
	b, err := f.loader.begin(ctx, "get", key, f.loader.nearGet(ctx, key), f.fetch == nil)
	if b.caller == nil {
		return b.result.Value, err
	}
	b.caller.fetch = func(ctx context.Context, _ *Fetch[V]) (V, error) { return f.fetch(ctx, arg) }
	r, err := b.caller.settledLoad()
	return r.Value, err
}

// Delete is [Loader.Delete] of the key of arg.
func (f Func[A, V]) Delete(ctx context.Context, arg A) error {
	key, err := f.key(arg)
	if err != nil {
		return err
	}
	return f.loader.Delete(ctx, key)
}

// Serialize returns fn with a lock around it: of all calls whose arguments have the same name,
// in all processes, one runs at a time, and the others wait. Each call runs; to run one for
// all callers, use [Wrap]. The name of an argument is what name returns for it; without name,
// what [Key] returns. A name that ignores its argument makes one lock for all calls.
//
// The lock is held, and fn's context ends, as with [Locker.Do]. fn's own error is returned
// unchanged. An error of the Locker says that fn did not run. If the lock was lost while fn
// ran, the result is returned with an error that is [ErrLockLost].
//
// Serialize panics as Wrap does, if lk or fn is nil or Key does not accept an A.
func Serialize[A, R any](lk *Locker, name func(A) string, fn func(ctx context.Context, arg A) (R, error)) func(ctx context.Context, arg A) (R, error) {
	switch {
	case lk == nil:
		panic(&Error{Op: "serialize", Err: errors.New("the Locker is nil")})
	case fn == nil:
		panic(&Error{Op: "serialize", Err: errors.New("the function is nil")})
	}
	nameOf := keyMaker("serialize", name)
	return func(ctx context.Context, arg A) (result R, err error) {
		n, err := nameOf(arg)
		if err != nil {
			return result, err
		}
		err = lk.Do(ctx, n, func(ctx context.Context) (err error) {
			result, err = fn(ctx, arg)
			return err
		})
		return result, err
	}
}

// Key returns a readable text of its arguments, for use as a key. Texts differ where types or
// values differ, and are the same in every process. Strings are quoted. A value that is no
// string, int or bool has its type with it, a named type with the path of its package:
//
//	Key("teapot", 3)                  "teapot",3
//	Key(int64(3))                     int64(3)
//	Key(shop.Query{Shop: 3, Tag: &s}) example.com/shop.Query(Shop:3,Tag:&"hot")
//
// Values count, with the unexported fields of structs: pointers are followed, the entries of a
// map are sorted, and nil differs from empty. A [time.Time] counts by its instant and its
// location, without the monotonic clock. All NaNs are one.
//
// A text of 200 bytes or more is cut to 200, and ends with a SHA-256 of the whole.
//
// Key panics with an [*Error] for a func, a channel, an unsafe pointer, a type of package sync,
// and a value that contains one of these or itself. Two types of one name in different
// functions of a package are the same to Key if their values look the same. A renamed type
// has other keys.
func Key(args ...any) string {
	text, err := keytext.Of(args...)
	if err != nil {
		panic(&Error{Op: "key", Err: err})
	}
	return text
}

// keyMaker returns the key function of a wrapped function: key, or Key if it is nil.
func keyMaker[A any](op string, key func(A) string) func(A) (string, error) {
	if key != nil {
		return func(arg A) (string, error) { return key(arg), nil }
	}
	t := reflect.TypeFor[A]()
	if err := keytext.Check(t); err != nil {
		panic(&Error{Op: op, Err: fmt.Errorf("a %v needs a key function: %w", t, err)})
	}
	// The most frequent types need no conversion to an interface.
	for _, f := range []any{
		func(arg string) (string, error) { return keytext.OfString(arg), nil },
		func(arg int) (string, error) { return keytext.OfInt(arg), nil },
	} {
		if f, ok := f.(func(A) (string, error)); ok {
			return f
		}
	}
	return func(arg A) (string, error) {
		text, err := keytext.Of(arg)
		if err != nil {
			return "", &Error{Op: "key", Err: err}
		}
		return text, nil
	}
}
