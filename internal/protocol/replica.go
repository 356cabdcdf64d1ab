package protocol

import (
	"sync/atomic"
	"time"
)

// A replica remembers that a server stayed read-only for as long as an operation may
// take. A failover passes, and so an operation is sent again until its time is over; but
// at a server that is a replica for good, each operation would wait in vain.
//
// In the time after that, an operation that is answered READONLY fails at once, and makes
// that time longer. Every operation is still sent, so none fails once the server is a master.
type replica struct{ until atomic.Int64 } // since epoch

const replicaFor = 5 * time.Second

var epoch = time.Now() // of this room: monotonic

func (r *replica) note() { r.until.Store(int64(time.Since(epoch) + replicaFor)) }

// isKnown reports whether a server was read-only a short time ago, and notes that it is now.
func (r *replica) isKnown() bool {
	if until := r.until.Load(); until == 0 || int64(time.Since(epoch)) >= until {
		return false
	}
	r.note()
	return true
}

func isReadOnly(err error) bool { return hasCode(err, "READONLY") }
