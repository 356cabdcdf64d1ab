package batch

import (
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// recent is how old a clone may be, see punctual: hooks that are added to the
// client are called a moment later.
const recent = 100 * time.Millisecond

// direct returns a way to the connections of a client on which a command ends
// with its context's deadline, whatever Redis does, so that a caller may wait
// there; or nil, if there is none. No command of a ClusterClient is sure to: it
// may have to ask first where a key is. Nor is it known of what others wrap.
func direct(conn Conn) func() Conn {
	rdb, ok := conn.(*redis.Client)
	if !ok {
		return nil
	}
	switch opt := rdb.Options(); {
	case opt.ReadTimeout < 0 || opt.WriteTimeout < 0: // it never sets a deadline
		return nil
	case opt.ClientSideCache != nil || opt.ClientSideCacheConfig != nil: // one command may wait for another
		return nil
	case opt.ContextTimeoutEnabled:
		return func() Conn { return rdb }
	case rdb.WithTimeout(0).Options() == opt: // not with the go-redis that this was written for; see punctual
		return nil
	}
	return (&punctual{of: rdb}).get
}

// A punctual is a clone of a client, with the same connections, that heeds
// deadlines. The client itself is not touched. A clone has the hooks that the
// client had when it was made, so it is made anew from time to time.
type punctual struct {
	of    *redis.Client
	clone atomic.Pointer[clone]
}

type clone struct {
	rdb  *redis.Client
	made time.Duration // when, since epoch
}

func (p *punctual) get() Conn {
	c := p.clone.Load()
	if c == nil || now()-c.made >= recent {
		c = &clone{rdb: p.make(), made: now()}
		p.clone.Store(c)
	}
	return c.rdb
}

func (p *punctual) make() *redis.Client {
	opt := p.of.Options()
	rdb := p.of.WithTimeout(opt.ReadTimeout)
	own := rdb.Options() // a copy
	own.WriteTimeout = opt.WriteTimeout
	own.ContextTimeoutEnabled = true
	return rdb
}
