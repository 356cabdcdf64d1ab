package protocol

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Got is one value of a GetMany.
type Got struct {
	Value []byte
	Err   error
	Again bool // it was asked for once more, so it may be of another node
}

// GetMany is Get of many keys in few round trips. It asks at one node if at is not
// nil, and else at the node of each key. Keys that get an error that ends soon are
// asked for again, together and wherever they are, for as long as an operation may
// take; and so are those, once, whose connection ends.
func (c *Client) GetMany(ctx context.Context, at Runner, keys []Key, limit int) []Got {
	started := time.Now()
	m := getMany{c: c, keys: keys, limit: limit, got: make([]Got, len(keys)), left: make([]int, len(keys))}
	for i := range keys {
		m.left[i] = i
	}
	if at == nil {
		at = c.run
	}
	if err := m.ask(ctx, at, c.timeout); err != nil {
		_ = c.persist(ctx, err, func(within time.Duration) error { // the errors are in got
			for _, i := range m.left {
				m.got[i].Again = true
			}
			return m.ask(ctx, c.run, within)
		})
	}
	m.failed(ctx, started)
	return m.got
}

// A getMany is one GetMany.
type getMany struct {
	c     *Client
	keys  []Key
	limit int
	got   []Got
	left  []int // the indices of those that are to be asked for
}

// ask asks for those that are left. Those that may be asked for again are then left,
// and the error is that of one of them.
func (m *getMany) ask(ctx context.Context, at Runner, within time.Duration) (last error) {
	cmds := make([]redis.Cmder, len(m.left))
	values := make([]*redis.StringCmd, len(m.left))
	for j, i := range m.left {
		values[j] = redis.NewStringCmd(ctx, "getrange", m.keys[i].Value, 0, m.limit)
		cmds[j] = values[j]
	}
	var errs []error
	if len(cmds) == 1 {
		errs = []error{at.Read(ctx, within, values[0])} // it may share the reply of an equal one
	} else {
		errs = at.Each(ctx, within, cmds)
	}
	left := m.left[:0]
	for j, i := range m.left {
		err := Discreet(errs[j])
		if err != nil && redis.HasErrorPrefix(err, "WRONGTYPE") {
			err = ErrType
		}
		m.got[i].Err = err
		switch {
		case err == nil && values[j].Val() != "":
			m.got[i].Value, _ = values[j].Bytes()
		case err != nil && (passing(err) || cut(err)):
			left, last = append(left, i), err
		}
	}
	m.left = left
	return last
}

// failed reports the keys that have failed, and one error of Redis among theirs.
func (m *getMany) failed(ctx context.Context, started time.Time) {
	var one error
	for i, got := range m.got {
		if got.Err == nil || got.Err == ErrType { //nolint:errorlint // it is ours, as it is
			continue
		}
		if one == nil {
			one = m.c.failed(ctx, call{"read", m.keys[i].Value, started}, got.Err)
			m.got[i].Err = one
		} else {
			m.got[i].Err = m.c.run.Failed(ctx, m.keys[i].Value, time.Since(started), got.Err) // it may be of another node
		}
	}
}
