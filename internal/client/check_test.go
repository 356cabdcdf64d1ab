package client_test

import (
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/client"
)

type (
	universal = redis.UniversalClient
	hidden    struct{ universal }           // an unexported embedded field
	deep      struct{ *hidden }             // through a pointer
	value     struct{ redis.ClusterClient } // only a pointer to it is a client
	spare     struct {
		redis.UniversalClient
		other *redis.Ring
	}
	endless struct {
		redis.UniversalClient
		again *endless
	}
)

func TestCheckAcceptsAndRefusesClients(t *testing.T) {
	single := redis.NewClient(&redis.Options{})
	defer single.Close()
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	defer cluster.Close()
	ring := redis.NewRing(&redis.RingOptions{})
	defer ring.Close()
	failover := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{"127.0.0.1:1"}})
	defer failover.Close()
	cycle := &endless{UniversalClient: single}
	cycle.again = cycle
	for name, c := range map[string]struct {
		rdb     redis.UniversalClient
		cluster bool
		err     error
	}{
		"a client":                       {rdb: single},
		"Sentinels":                      {rdb: failover},
		"a cluster":                      {rdb: cluster, cluster: true},
		"a hidden client":                {rdb: hidden{single}},
		"a hidden cluster":               {rdb: deep{&hidden{cluster}}, cluster: true},
		"a hidden Ring":                  {rdb: deep{&hidden{ring}}, err: client.ErrRing},
		"a hidden nil":                   {rdb: deep{&hidden{}}, err: client.ErrNil},
		"a wrapper without its wrapped":  {rdb: deep{}, err: client.ErrNil},
		"a nil field":                    {rdb: spare{UniversalClient: single}},
		"a Ring in a field":              {rdb: spare{single, ring}, err: client.ErrRing},
		"a cycle":                        {rdb: cycle},
		"a struct that is not a pointer": {rdb: &value{}, err: client.ErrNil},
		"a zero struct":                  {rdb: &redis.Client{}, err: client.ErrNil},
	} {
		t.Run(name, func(t *testing.T) {
			cluster, err := client.Check(c.rdb)
			if cluster != c.cluster || !errors.Is(err, c.err) {
				t.Errorf("cluster %v, error %v, want %v, %v", cluster, err, c.cluster, c.err)
			}
		})
	}
}
