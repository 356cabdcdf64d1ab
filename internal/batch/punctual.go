package batch

import "github.com/redis/go-redis/v9"

// isPunctual reports whether a command through a client ends with its context's
// deadline, whatever Redis does, so that a caller may wait there. No command of a
// ClusterClient is sure to: it may have to ask first where a key is. Nor is it known
// of what others wrap.
func isPunctual(conn Conn) bool {
	rdb, ok := conn.(*redis.Client)
	if !ok {
		return false
	}
	opt := rdb.Options()
	return opt.ContextTimeoutEnabled &&
		opt.ReadTimeout >= 0 && opt.WriteTimeout >= 0 && // else it sets no deadlines
		opt.ClientSideCache == nil && opt.ClientSideCacheConfig == nil // else one command may wait for another
}
