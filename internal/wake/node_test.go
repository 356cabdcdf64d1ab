package wake_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/wake"
)

// A mailbox whose node of a cluster hangs or dies subscribes at another node: the keys of
// that node are well, and their messages arrive.
func TestMailboxLeavesANodeThatIsIll(t *testing.T) {
	for name, harm := range map[string]func(*redistest.Process){"hangs": (*redistest.Process).Pause, "dies": (*redistest.Process).Kill} {
		t.Run(name, func(t *testing.T) {
			cluster := redistest.Cluster(t)
			r := cluster.Backend()
			nodes := cluster.Nodes()
			rdbs := make([]*redis.Client, len(nodes)) // to each node by itself
			for i, node := range nodes {
				rdbs[i] = node.Client()
			}
			rdb := cluster.Client()
			mailbox := wake.Open(rdb)
			t.Cleanup(mailbox.Close)
			mailbox.Listen(t.Context(), channel)
			r.Until("the mailbox is subscribed", func() bool { return mailbox.Hears(channel) })

			ill := -1
			for i, rdb := range rdbs {
				subscribers, err := rdb.PubSubNumSub(t.Context(), channel).Result()
				if err != nil {
					t.Fatal(err)
				}
				if subscribers[channel] > 0 {
					ill = i
				}
			}
			if ill < 0 {
				t.Fatal("no node has a subscriber")
			}
			harm(nodes[ill])
			t.Cleanup(func() {
				if name == "hangs" {
					nodes[ill].Resume()
				}
			})

			slot := mailbox.Wait("name")
			defer slot.Close()
			well := rdbs[(ill+1)%len(rdbs)]
			r.Until("a message of another node arrives", func() bool {
				mailbox.Suspect(channel) // as a waiter does that found by its timer what a message should have told
				if err := well.Publish(t.Context(), channel, message('V', 1, "name", "")).Err(); err != nil {
					t.Fatal(err)
				}
				m, _ := slot.Take(1)
				return m.Kind == 'V'
			})
		})
	}
}
