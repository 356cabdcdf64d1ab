package wake_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// A mailbox subscribes at another node of the cluster when its own hangs or dies. Then it
// receives the messages about the keys of the other nodes.
func TestMailboxLeavesAFailedNode(t *testing.T) {
	for name, harm := range map[string]func(*redistest.Process){"hangs": (*redistest.Process).Pause, "dies": (*redistest.Process).Kill} {
		t.Run(name, func(t *testing.T) {
			cluster := redistest.Cluster(t)
			r := cluster.Backend()
			nodes := cluster.Nodes()
			rdbs := make([]*redis.Client, len(nodes)) // one for each node
			for i, node := range nodes {
				rdbs[i] = node.Client()
			}
			rdb := cluster.Client()
			mailbox := wake.New(rdb)
			t.Cleanup(mailbox.Close)
			mailbox.Subscribe(t.Context(), channel)
			r.Until("the mailbox is subscribed", func() bool { return mailbox.Subscribed(channel) })

			failed := -1
			for i, rdb := range rdbs {
				subscribers, err := rdb.PubSubNumSub(t.Context(), channel).Result()
				if err != nil {
					t.Fatal(err)
				}
				if subscribers[channel] > 0 {
					failed = i
				}
			}
			if failed < 0 {
				t.Fatal("no node has a subscriber")
			}
			harm(nodes[failed])
			t.Cleanup(func() {
				if name == "hangs" {
					nodes[failed].Resume()
				}
			})

			slot := mailbox.OpenSlot("name")
			defer slot.Close()
			healthy := rdbs[(failed+1)%len(rdbs)]
			r.Until("a message of another node arrives", func() bool {
				mailbox.CheckConnection(channel) // as after a recheck timer
				if err := healthy.Publish(t.Context(), channel, message('V', 1, "name", "")).Err(); err != nil {
					t.Fatal(err)
				}
				m, _ := slot.Take(1)
				return m.Kind == 'V'
			})
		})
	}
}
