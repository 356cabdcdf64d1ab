package client

import (
	"errors"
	"reflect"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/guard"
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
// It searches the fields of a wrapper for clients, down to maxLayers. If it finds none, the client
// counts as one of a single server.
func Check(rdb redis.UniversalClient) (cluster bool, err error) {
	err = guard.Call(func() (err error) {
		cluster, err = check(reflect.ValueOf(rdb), maxLayers)
		return err
	})
	if _, empty := errors.AsType[*guard.PanicError](err); empty {
		err = ErrNil // a redis.Client{} has no options
	}
	return cluster, err
}

const maxLayers = 16 // of wrappers; a limit, because wrappers may form a cycle

var universal = reflect.TypeFor[redis.UniversalClient]()

func check(v reflect.Value, layers int) (cluster bool, err error) {
	for v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return false, ErrNil
	}
	if v.Kind() == reflect.Pointer && !v.CanInterface() {
		v = reflect.NewAt(v.Type().Elem(), v.UnsafePointer()) // an unexported field: reflection allows to read its options this way
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

// checkFields checks the clients in the fields of a wrapper. It ignores a nil in a field that
// is not embedded: the wrapper has no methods from that field.
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
