package near

import (
	"context"

	"github.com/redis/go-redis/v9/push"
)

// Heard returns what a cache of values whose names begin so forgets when a push
// comes: tags, or everything.
func Heard(values, beats string, message []any) (tags []string, all bool) {
	h := &Hub{ctx: context.Background(), listeners: make(map[any]*listener)}
	h.links.Store(&map[string]*link{})
	h.attach(&listener{
		values:    values,
		forget:    func(tag string) { tags = append(tags, tag) },
		forgetAll: func() { all = true },
	}, nil)
	s := &session{link: newLink(h, "", nil), beats: beats, sent: make(map[string]int64)}
	_ = s.HandlePushNotification(h.ctx, push.NotificationHandlerContext{}, message)
	s.link.cancel()
	return tags, all
}
