package fetchonce

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/fetchonce/fetchonce/internal/keytext"
)

// A Func is a function of one argument whose results a [Loader] keeps. It is
// made by [Wrap], and is used by many goroutines at once.
type Func[A, V any] struct {
	loader *Loader[V]
	key    func(A) (string, error)
	fetch  func(ctx context.Context, arg A) (V, error)
}

// Wrap returns fetch with a Loader before it. An argument's results are kept
// under the key that key makes of it; without one, under the one that [Key]
// makes. A function of several arguments takes a struct of them.
//
// All that is wrapped with the same Loader, or with one of the same Prefix,
// shares its keys: give each function a Loader of its own.
//
// Wrap panics with an [*Error] if l or fetch is nil, or if key is and Key can
// make nothing of an A, such as one that has a func in it.
func Wrap[A, V any](l *Loader[V], key func(A) string, fetch func(ctx context.Context, arg A) (V, error)) Func[A, V] {
	switch {
	case l == nil:
		panic(&Error{Op: "wrap", Err: errors.New("the Loader is nil")})
	case fetch == nil:
		panic(&Error{Op: "wrap", Err: errors.New("the fetch is nil")})
	}
	return Func[A, V]{loader: l, key: keyMaker("wrap", key), fetch: fetch}
}

// Get is [Loader.Get] of the key of arg. Of several callers whose arguments have
// the same key, the argument of one is used.
//
// Without a key function, the error is an [*Error] if [Key] can make nothing of
// what arg has in an interface, or if arg contains itself.
func (f Func[A, V]) Get(ctx context.Context, arg A) (V, error) {
	key, err := f.key(arg)
	if err != nil {
		var zero V
		return zero, err
	}
	c, refresh := f.loader.nearGet(ctx, key)
	return get(ctx, f.loader, key, nearHit[V]{c, refresh}, getFetch[A, V]{arg, f.fetch})
}

// Delete is [Loader.Delete] of the key of arg.
func (f Func[A, V]) Delete(ctx context.Context, arg A) error {
	key, err := f.key(arg)
	if err != nil {
		return err
	}
	return f.loader.Delete(ctx, key)
}

// Serialize returns fn with a lock around it: of all calls, in all processes,
// whose arguments have the same name, one runs at a time, and the others wait.
// It runs for every one of them; to have it run for all of them once, see
// [Wrap]. The name is the one that name makes of the argument; without one, that
// which [Key] makes. A name that does not depend on the argument makes it one
// lock for all.
//
// The lock is held, and fn's context ends, as [Locker.Do] says, and so are the
// errors: fn's own comes back as it is, and one of the Locker's says that fn was
// not run. If the lock was lost while fn ran, the result is there, with an error
// that is [ErrLockLost].
//
// Serialize panics as Wrap does, if lk or fn is nil or Key can make nothing of
// an A.
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

// Key returns a text of its arguments to use as a key: one that people can read,
// and that differs where their types or their values do. It is the same in every
// process. Strings are quoted, and what is neither string, int nor bool has its
// type with it, a named one with the path of its package:
//
//	Key("teapot", 3)                  "teapot",3
//	Key(int64(3))                     int64(3)
//	Key(shop.Query{Shop: 3, Tag: &s}) example.com/shop.Query(Shop:3,Tag:&"hot")
//
// Values are what counts, down to the fields of structs that are not exported:
// pointers are followed, the entries of a map are sorted, and nil is not the same
// as empty. A [time.Time] is its instant and its location, not the reading of a
// monotonic clock; all NaNs are one.
//
// A text of 200 bytes or more is cut to 200, and then ends with a SHA-256 of the
// whole.
//
// Key panics with an [*Error] for what has no value that could be written: funcs,
// channels, unsafe pointers, what package sync has, and anything that has such
// a thing in it or contains itself. Two types of one name that are declared in
// different functions of a package are the same to Key, if their values look the
// same. A type that is renamed has other keys.
func Key(args ...any) string {
	text, err := keytext.Of(args...)
	if err != nil {
		panic(&Error{Op: "key", Err: err})
	}
	return text
}

// keyMaker returns what makes the keys of a wrapped function: key if there is
// one, else Key.
func keyMaker[A any](op string, key func(A) string) func(A) (string, error) {
	if key != nil {
		return func(arg A) (string, error) { return key(arg), nil }
	}
	t := reflect.TypeFor[A]()
	if err := keytext.Check(t); err != nil {
		panic(&Error{Op: op, Err: fmt.Errorf("give a function that makes keys of a %v: %w", t, err)})
	}
	// The most frequent ones need no detour through an interface.
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
