package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
)

// serve passes requests on to the processes in turn, until ctx ends.
func serve(ctx context.Context, set settings, at place) (err error) {
	c, err := startCrew(set, at, true)
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
	var turn atomic.Uint64
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(targets[turn.Add(1)%uint64(len(targets))])
	}}
	listener, err := net.Listen("tcp", set.serve)
	if err != nil {
		return err
	}
	view := "http://" + listener.Addr().String() + "/api/stats/calculations/"
	fmt.Printf("Redis is %s, and %d processes serve the view. A part of the page is at\n\n  %svisitors\n\n", at.name, set.processes, view)
	fmt.Printf("All at once, one calculation after the other (at_once is 1):\n\n"+
		"  for part in visitors searches errors speed; do curl -s %s$part & done; wait\n\n^C ends it.\n", view)
	return serveUntil(ctx, &http.Server{Handler: proxy, ReadHeaderTimeout: patience}, listener)
}
