package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http/httputil"
	"net/url"
	"sync/atomic"

	"github.com/fetchonce/fetchonce/examples/internal/harness"
)

// serve passes requests on to the processes in turn, until ctx ends.
func serve(ctx context.Context, set settings, at place, redisName string) (err error) {
	c, err := startCrew(ctx, set, at, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	var targets []*url.URL
	for _, s := range c.urls {
		target, err := url.Parse(s)
		if err != nil {
			return err
		}
		targets = append(targets, target)
	}
	var requests atomic.Uint64
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(targets[requests.Add(1)%uint64(len(targets))])
	}}
	listener, err := net.Listen("tcp", set.serve)
	if err != nil {
		return err
	}
	view := "http://" + listener.Addr().String() + path
	fmt.Printf("Redis is %s, and %d processes serve the view. A part of the page is at\n\n  %svisitors\n\n", redisName, set.processes, view)
	fmt.Printf("All at once, one calculation after the other (at_once is 1):\n\n"+
		"  for part in visitors searches errors speed; do curl -s %s$part & done; wait\n\n^C ends it.\n", view)
	return harness.Serve(ctx, listener, proxy)
}
