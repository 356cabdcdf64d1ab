package protocol

import (
	"sync/atomic"
	"time"
)

// A replica records that a server stayed read-only for as long as an operation may take.
//
// An operation that is answered READONLY is sent again until its timeout, because a failover
// ends soon. At a server that stays a replica, every operation would take all of its timeout. So
// for replicaFor after one timed out, an operation fails at the first READONLY, and each such
// failure starts that time anew. Every operation is still sent, so none fails once the server is a
// master.
type replica struct{ until atomic.Int64 } // since epoch

const replicaFor = 5 * time.Second

// epoch is the zero of this package's clock, which is monotonic.
var epoch = time.Now()

func (r *replica) note() { r.until.Store(int64(time.Since(epoch) + replicaFor)) }

// isKnown reports whether the server was recorded as read-only in the last replicaFor. If so, it
// records that again.
func (r *replica) isKnown() bool {
	if until := r.until.Load(); until == 0 || int64(time.Since(epoch)) >= until {
		return false
	}
	r.note()
	return true
}

func isReadOnly(err error) bool { return hasCode(err, "READONLY") }
