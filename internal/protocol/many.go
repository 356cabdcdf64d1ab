package protocol

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Got is the result of a GetMany for one key.
type Got struct {
	Value  []byte
	Err    error
	Resent bool // the read was sent again, so another node may have answered it
}

// GetMany is Get for many keys in few round trips. It sends the reads to at or, if that is nil,
// to the node of each key. A read that fails with an error that ends soon is sent again to the
// node of its key, together with the others, for as long as an operation may take. A read whose
// connection ended is sent again once.
func (c *Client) GetMany(ctx context.Context, at Runner, keys []Key, limit int) []Got {
	started := time.Now()
	m := getMany{c: c, keys: keys, limit: limit, got: make([]Got, len(keys)), unread: make([]int, len(keys))}
	for i := range keys {
		m.unread[i] = i
	}
	if at == nil {
		at = c.run
	}
	if err := m.read(ctx, at, c.timeout); err != nil {
		_ = c.persist(ctx, err, func(within time.Duration) error { // the errors are in got
			for _, i := range m.unread {
				m.got[i].Resent = true
			}
			return m.read(ctx, c.run, within)
		})
	}
	m.failed(ctx, started)
	return m.got
}

// A getMany is the state of one GetMany.
type getMany struct {
	c      *Client
	keys   []Key
	limit  int
	got    []Got
	unread []int // the indices of the keys to read
}

// read reads the unread keys once. Those that may be read again stay unread, and read returns
// the error of one of them.
func (m *getMany) read(ctx context.Context, at Runner, within time.Duration) (last error) {
	cmds := make([]redis.Cmder, len(m.unread))
	values := make([]*redis.StringCmd, len(m.unread))
	for j, i := range m.unread {
		values[j] = redis.NewStringCmd(ctx, "getrange", m.keys[i].Value, 0, m.limit)
		cmds[j] = values[j]
	}
	var errs []error
	if len(cmds) == 1 {
		errs = []error{at.Read(ctx, within, values[0])} // it may share the reply to an equal read
	} else {
		errs = at.Each(ctx, within, cmds)
	}
	unread := m.unread[:0]
	for j, i := range m.unread {
		err := Discreet(errs[j])
		if err != nil && redis.HasErrorPrefix(err, "WRONGTYPE") {
			err = ErrType
		}
		m.got[i].Err = err
		switch {
		case err == nil && values[j].Val() != "":
			m.got[i].Value, _ = values[j].Bytes()
		case err != nil && (passing(err) || cut(err)):
			unread, last = append(unread, i), err
		}
	}
	m.unread = unread
	return last
}

// failed reports the keys that failed. Client.Failed is called for one of them only.
func (m *getMany) failed(ctx context.Context, started time.Time) {
	reported := false
	for i, got := range m.got {
		if got.Err == nil || got.Err == ErrType { //nolint:errorlint // read returns it unwrapped
			continue
		}
		if !reported {
			reported = true
			m.got[i].Err = m.c.failed(ctx, call{"read", m.keys[i].Value, started}, got.Err)
		} else {
			m.got[i].Err = m.c.run.Failed(ctx, m.keys[i].Value, time.Since(started), got.Err) // another node may have failed
		}
	}
}
