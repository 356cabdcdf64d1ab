//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// proxies are the proxies of one worker, one for each node of Redis.
type proxies struct {
	all  []*toxiproxy.Proxy
	addr map[string]string // address of a node -> address of its proxy
}

// newProxies starts a proxy for each address.
func newProxies(name string, addrs []string) (*proxies, error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &proxies{addr: make(map[string]string)}
	for _, addr := range addrs {
		proxy := toxiproxy.NewProxy(server, name+" "+addr, "127.0.0.1:0", addr)
		if err := proxy.Start(); err != nil {
			return nil, err
		}
		p.all = append(p.all, proxy)
		p.addr[addr] = proxy.Listen
	}
	return p, nil
}

// toxicName is the name of the toxic, of which a proxy has one at most.
const toxicName = "fault"

// add adds a toxic to all proxies.
func (p *proxies) add(kind, stream, attributes string) error {
	for _, proxy := range p.all {
		toxic := fmt.Sprintf(`{"name": %q, "type": %q, "stream": %q, "attributes": {%s}}`, toxicName, kind, stream, attributes)
		if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			return err
		}
	}
	return nil
}

// remove removes the toxic from all proxies.
func (p *proxies) remove() {
	for _, proxy := range p.all {
		_ = proxy.Toxics.RemoveToxic(context.Background(), toxicName)
	}
}

func (p *proxies) stop() {
	for _, proxy := range p.all {
		proxy.Stop()
	}
}
