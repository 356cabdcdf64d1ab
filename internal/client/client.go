// Package client says which Redis clients a Loader or a Locker accepts, and turns
// a panic of a client into an error.
//
// The clients of go-redis differ in ways that redis.UniversalClient does not show,
// and some of them break the promises. Programs also wrap them: most often in a
// struct that embeds a client or a redis.UniversalClient. So [Check] examines what
// a client is made of, and reads the options of what it finds.
//
// It is used by the root package and by the rooms that call a client on
// goroutines of their own: batch, near and wake.
package client

import (
	"errors"
	"reflect"

	"github.com/redis/go-redis/v9"
)

// Why a client is refused.
var (
	ErrNil      = errors.New("the Redis client is nil or a zero struct, or wraps one that is")
	ErrRing     = errors.New("the Redis client is a Ring, which moves keys between shards as these come and go: a deleted value could return")
	ErrReplicas = errors.New("the Redis client reads from replicas (ReadOnly, RouteByLatency or RouteRandomly), which may still have a deleted value")
	ErrCache    = errors.New("the Redis client has a client-side cache (ClientSideCache or ClientSideCacheConfig), which may return a deleted value: use Options.Near")
)

// Check returns an error if a client is refused, and otherwise whether it is the
// client of a cluster. It sends nothing and starts no goroutine.
//
// It finds a client in the fields of a wrapper, at any depth. A client that none
// of these types holds is accepted as one of a single server.
func Check(rdb redis.UniversalClient) (cluster bool, err error) {
	err = Call(func() (err error) {
		cluster, err = check(reflect.ValueOf(rdb), mostLayers)
		return err
	})
	if _, empty := errors.AsType[*PanicError](err); empty {
		err = ErrNil // a redis.Client{} has no options
	}
	return cluster, err
}

const mostLayers = 16 // of wrappers; a cycle of them ends here

var universal = reflect.TypeFor[redis.UniversalClient]()

func check(v reflect.Value, layers int) (cluster bool, err error) {
	for v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return false, ErrNil
	}
	if v.Kind() == reflect.Pointer && !v.CanInterface() {
		v = reflect.NewAt(v.Type().Elem(), v.UnsafePointer()) // of an unexported field, but its options may be read
	}
	if v.CanInterface() {
		switch c := v.Interface().(type) {
		case *redis.Client:
			return false, checkOptions(c.Options())
		case *redis.ClusterClient:
			opt := c.Options()
			if opt.ReadOnly || opt.RouteByLatency || opt.RouteRandomly {
				return true, ErrReplicas
			}
			return true, nil
		case *redis.Ring:
			return false, ErrRing
		}
	}
	return checkFields(reflect.Indirect(v), layers-1)
}

func checkOptions(opt *redis.Options) error {
	if opt.ClientSideCache != nil || opt.ClientSideCacheConfig != nil {
		return ErrCache
	}
	return nil
}

// checkFields checks the clients that a wrapper has. A nil in a field that is not
// embedded is none: no method of the wrapper's is its.
func checkFields(v reflect.Value, layers int) (cluster bool, err error) {
	if v.Kind() != reflect.Struct || layers == 0 {
		return false, nil
	}
	for i := range v.NumField() {
		of, field := v.Type().Field(i), v.Field(i)
		if of.Type.Kind() == reflect.Struct && field.CanAddr() && !of.Type.Implements(universal) {
			field = field.Addr()
		}
		if !field.Type().Implements(universal) {
			continue
		}
		c, err := check(field, layers)
		if errors.Is(err, ErrNil) && !of.Anonymous {
			continue
		}
		if err != nil {
			return c, err
		}
		cluster = cluster || c
	}
	return cluster, nil
}
