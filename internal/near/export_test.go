package near

import (
	"context"

	"github.com/redis/go-redis/v9/push"
)

// Invalidated returns the tags that a cache with the prefix values invalidates after a push,
// and whether it invalidates all entries.
func Invalidated(values, heartbeats string, message []any) (tags []string, all bool) {
	h := &Hub{ctx: context.Background(), caches: make(map[any]*attached)}
	h.trackers.Store(&map[string]*tracker{})
	h.attach(&attached{
		values:        values,
		invalidate:    func(tag string) { tags = append(tags, tag) },
		invalidateAll: func() { all = true },
		distrust:      func() {},
	}, nil)
	c := &connection{tracker: newTracker(h, "", nil), heartbeats: heartbeats, sent: make(map[string]int64)}
	_ = c.HandlePushNotification(h.ctx, push.NotificationHandlerContext{}, message)
	c.tracker.cancel()
	return tags, all
}
