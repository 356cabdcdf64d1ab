//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// A place is the addresses of a Redis.
type place struct {
	Profile string   // see profile.go
	Addrs   []string // of the server, of the Sentinels, or of the cluster's nodes
}

const (
	masterName = "chaos"
	password   = canary + "-password"
)

// addHooks adds a hook to a client. In a cluster it adds it to the clients of the nodes, by which the
// library sends.
func addHooks(rdb redis.UniversalClient, hook redis.Hook) {
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(hook) })
		return
	}
	rdb.AddHook(hook)
}

// client returns a client that dials the proxy of each address. If proxies is nil, it dials the
// addresses.
func (p place) client(proxies map[string]string) redis.UniversalClient {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if proxies != nil {
			proxy, ok := proxies[addr]
			if !ok {
				return nil, fmt.Errorf("%s has no proxy", addr)
			}
			addr = proxy
		}
		return (&net.Dialer{Timeout: 300 * time.Millisecond}).DialContext(ctx, network, addr)
	}
	return redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: p.Addrs, MasterName: map[string]string{"sentinel": masterName}[p.Profile], IsClusterMode: p.Profile == "cluster" || p.Profile == illnode,
		Password: password, SentinelPassword: password, Dialer: dial, ContextTimeoutEnabled: true,
		DialTimeout: 300 * time.Millisecond, ReadTimeout: redisTimeout, WriteTimeout: redisTimeout,
	})
}
