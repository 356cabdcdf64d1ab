package fetchonce

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/fetchonce/fetchonce/internal/keytext"
)

// A Func is a function of one argument whose results a [Loader] stores. [Wrap] returns one. It is
// safe for concurrent use.
type Func[A, V any] struct {
	loader *Loader[V]
	key    func(A) (string, error)
	fetch  func(ctx context.Context, arg A) (V, error)
}

// Wrap returns a Func that loads the results of fetch through a Loader. key returns the key of an
// argument. If key is nil, the key is what [Key] returns for the argument. For a function of several
// arguments, use a struct of them.
//
// Functions that are wrapped with the same Loader, or with Loaders of the same Prefix, share their
// keys. Give each function its own Loader and Prefix.
//
// Wrap panics with an [*Error] if l or fetch is nil, or if key is nil and Key does not accept an A,
// for example because A contains a func.
func Wrap[A, V any](l *Loader[V], key func(A) string, fetch func(ctx context.Context, arg A) (V, error)) Func[A, V] {
	switch {
	case l == nil:
		panic(&Error{Op: "wrap", Err: errors.New("the Loader is nil")})
	case fetch == nil:
		panic(&Error{Op: "wrap", Err: errors.New("the fetch is nil")})
	}
	return Func[A, V]{loader: l, key: keyMaker("wrap", key), fetch: fetch}
}

// Get is [Loader.Get] for the key of arg. If callers with different arguments but the same key wait
// at the same time, fetch is called with the argument of one of them.
//
// Without a key function, the error is an [*Error] if arg contains itself, or if [Key] does not
// accept the value of an interface in arg.
func (f Func[A, V]) Get(ctx context.Context, arg A) (V, error) {
	key, err := f.key(arg)
	if err != nil {
		var zero V
		return zero, err
	}
	b, err := f.loader.begin(ctx, "get", key, f.loader.nearGet(ctx, key), false)
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

// Serialize returns fn with a lock around it. Of all calls whose arguments have the same name, in
// all processes, one runs at a time and the others wait. Every call runs; to share one call, use
// [Wrap]. name returns the name of an argument. If name is nil, the name is what [Key] returns. A
// name function that returns a constant makes one lock for all calls.
//
// fn runs as in [Locker.Do]. Its error is returned unchanged. An error of the Locker means that fn
// did not run, except for [ErrLockLost]: fn ran and lost the lock, and its result is returned with
// the error.
//
// Serialize panics with an [*Error] if lk or fn is nil, or if name is nil and Key does not accept an
// A.
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

// Key returns a readable text of its arguments, for use as a key. Different types or values have
// different texts. A text is the same in every process. Strings are quoted. The text of any value
// other than a string, int or bool contains its type; a named type has the path of its package:
//
//	Key("teapot", 3)                  "teapot",3
//	Key(int64(3))                     int64(3)
//	Key(shop.Query{Shop: 3, Tag: &s}) example.com/shop.Query(Shop:3,Tag:&"hot")
//
// Key reads values, including unexported struct fields. It follows pointers, sorts the entries of a
// map, and distinguishes nil from empty. For a [time.Time] it uses the instant and the location,
// without the monotonic clock. All NaNs have the same text.
//
// A text of 200 bytes or more is cut to 200 bytes, and ends with a SHA-256 of the whole text.
//
// Key panics with an [*Error] for a func, a channel, an unsafe pointer, a type of package sync, and
// a value that contains one of these or itself. Two local types with the same name, in different
// functions of one package, have the same text if their values look the same. If you rename a type,
// its keys change.
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
