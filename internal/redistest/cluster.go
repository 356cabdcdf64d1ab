package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Masters are the three masters of a real cluster, each with a third of the
// slots. The methods are not safe for concurrent use.
type Masters struct {
	t     testing.TB
	wire  *Wire
	trio  *trio
	owned bool // the test may have done anything to the nodes
}

// Cluster returns a cluster for this test alone, without data and scripts. It uses
// free ports of the loopback interface and keeps no data on disk.
//
// A cluster takes two seconds to start, because a master waits before it joins one.
// So later tests reuse the cluster, unless the test ended with a dead node or called
// [Masters.Nodes]. A test that changes a node's settings calls Nodes.
//
// Without a redis-server, Cluster skips the test as [Server] does.
func Cluster(t testing.TB) *Masters {
	t.Helper()
	bin := Binary(t)
	c := idleTrio()
	if c == nil {
		var err error
		if c, err = startTrio(bin); err != nil {
			t.Fatal(err)
		}
	}
	m := &Masters{t: t, wire: newWire(), trio: c}
	t.Cleanup(func() {
		m.wantNoDenials()
		if m.owned || !c.runs() {
			c.end()
			return
		}
		c.resume()
		idle.Lock()
		defer idle.Unlock()
		idle.trios = append(idle.trios, c)
	})
	return m
}

// Client returns a new client of m, with the options of [Redis.Client]. It also
// follows no redirections, which go-redis counts as retries. Set MaxRedirects to
// follow them.
func (m *Masters) Client(change ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	q := quick()
	return m.client(&redis.ClusterOptions{
		MaxRedirects:             -1,
		MaxRetries:               q.MaxRetries,
		DialerRetries:            q.DialerRetries,
		DialTimeout:              q.DialTimeout,
		ReadTimeout:              q.ReadTimeout,
		ContextTimeoutEnabled:    q.ContextTimeoutEnabled,
		PoolSize:                 q.PoolSize,
		DisableIdentity:          q.DisableIdentity,
		MaintNotificationsConfig: q.MaintNotificationsConfig,
	}, change)
}

// Plain returns a new client of m with go-redis' own defaults.
func (m *Masters) Plain(change ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	return m.client(&redis.ClusterOptions{}, change)
}

func (m *Masters) client(opt *redis.ClusterOptions, change []func(*redis.ClusterOptions)) *redis.ClusterClient {
	m.t.Helper()
	opt.Addrs = m.Addrs()
	for _, f := range change {
		f(opt)
	}
	w := m.wire.below()
	if len(limits) > 0 && opt.Username == "" && opt.Password == "" {
		opt.Username, opt.Password = user, password
		opt.NewClient = func(opt *redis.Options) *redis.Client {
			rdb := redis.NewClient(opt)
			limit(m.t, rdb)
			return rdb
		}
	}
	opt.Dialer = w.dialer(redis.NewDialer(&redis.Options{DialTimeout: opt.DialTimeout, TLSConfig: opt.TLSConfig}))
	rdb := redis.NewClusterClient(opt)
	keep(m.t, rdb, w)
	return rdb
}

// Wire returns the Wire of all clients of m.
func (m *Masters) Wire() *Wire { return m.wire }

// Addrs returns the host and port of each node.
func (m *Masters) Addrs() []string {
	var addrs []string
	for _, d := range m.trio.nodes {
		addrs = append(addrs, d.addr)
	}
	return addrs
}

// Nodes returns the nodes in the order of their slots. The test may pause or kill
// one of them, or change its settings, so no later test reuses the cluster.
//
// After a node restarts, Ready waits until it is part of the cluster again.
func (m *Masters) Nodes() []*Process {
	m.owned = true
	return m.processes()
}

func (m *Masters) processes() []*Process {
	var nodes []*Process
	for _, d := range m.trio.nodes {
		nodes = append(nodes, &Process{t: m.t, wire: m.wire, d: d})
	}
	return nodes
}

// Join starts another node, a master without slots, and returns it when all nodes
// know each other. No later test reuses the cluster.
func (m *Masters) Join() *Process {
	m.t.Helper()
	m.owned = true
	c := m.trio
	bin := c.nodes[0].args[0]
	d, err := startDaemon(func() (*daemon, error) { return nodeDaemon(bin, c.dir) })
	if err == nil {
		first := c.nodes[0].port()
		c.nodes = append(c.nodes, d)
		err = d.tell(func(ctx context.Context, rdb *redis.Client) error {
			return rdb.Do(ctx, "CLUSTER", "MEET", "127.0.0.1", first).Err()
		})
	}
	if err == nil {
		err = c.await()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return &Process{t: m.t, wire: m.wire, d: d}
}

// Ready waits until every node reports that the whole cluster is available.
func (m *Masters) Ready() {
	m.t.Helper()
	if err := m.trio.await(); err != nil {
		m.t.Fatal(err)
	}
}

// Pause stops all nodes, as [Process.Pause] does.
func (m *Masters) Pause() {
	m.t.Helper()
	for _, p := range m.processes() {
		p.Pause()
	}
}

// Resume continues all nodes.
func (m *Masters) Resume() {
	m.t.Helper()
	for _, p := range m.processes() {
		p.Resume()
	}
}

// Kill ends all nodes (SIGKILL) and returns when they have ended. Their data is
// lost.
func (m *Masters) Kill() {
	m.wantNoDenials()
	m.trio.kill()
}

// Restart kills the nodes that still run, and starts all nodes again without data.
// The nodes keep their addresses and slots. Restart returns when the cluster is
// ready.
func (m *Masters) Restart() {
	m.t.Helper()
	m.Kill()
	for _, d := range m.trio.nodes {
		if err := d.start(); err != nil { // The node's file has its slots and peers.
			m.t.Fatal(err)
		}
	}
	m.Ready()
}

func (m *Masters) wantNoDenials() {
	for _, d := range m.trio.nodes {
		wantNoDenials(m.t, d)
	}
}

// A trio is the processes of a cluster. They may outlive a test, but not the test
// binary.
type trio struct {
	dir     string
	nodes   []*daemon
	janitor *janitor
}

// idle holds the clusters that no test uses.
var idle struct {
	sync.Mutex
	trios []*trio
}

// idleTrio returns an idle cluster without data, or nil. It ends the idle clusters that
// are not available.
func idleTrio() *trio {
	idle.Lock()
	defer idle.Unlock()
	for n := len(idle.trios); n > 0; n-- {
		c := idle.trios[n-1]
		idle.trios = idle.trios[:n-1]
		if c.clean() == nil && c.well() == nil {
			return c
		}
		c.end()
	}
	return nil
}

// startTrio starts three masters and makes a cluster of them.
func startTrio(bin string) (_ *trio, err error) {
	dir, err := shortDir()
	if err != nil {
		return nil, err
	}
	c := &trio{dir: dir}
	defer func() {
		if err != nil {
			c.end()
		}
	}()
	if c.janitor, err = startJanitor(dir); err != nil {
		return nil, err
	}
	for range 3 {
		d, err := startDaemon(func() (*daemon, error) { return nodeDaemon(bin, dir) })
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, d)
	}
	if err := c.meet(); err != nil {
		return nil, err
	}
	return c, c.await()
}

// nodeDaemon returns a daemon for a node of a cluster, with its own directory in
// dir.
func nodeDaemon(bin, dir string) (*daemon, error) {
	dir, err := os.MkdirTemp(dir, "node")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	return tcpDaemon(bin, dir, port,
		"--pidfile", filepath.Join(dir, pidfile),
		"--cluster-enabled", "yes",
		// The other nodes stay available when one ends.
		"--cluster-require-full-coverage", "no",
	), err
}

// meet assigns slots to the nodes and introduces the nodes to each other.
func (c *trio) meet() error {
	const slots = 16384
	for i, d := range c.nodes {
		err := d.tell(func(ctx context.Context, rdb *redis.Client) error {
			n := len(c.nodes)
			first, last := slots*i/n, slots*(i+1)/n-1
			// One ADDSLOTS with every slot: CLUSTER ADDSLOTSRANGE needs Redis 7.
			if err := rdb.ClusterAddSlotsRange(ctx, first, last).Err(); err != nil {
				return err
			}
			// Distinct epochs leave no conflict for the nodes to resolve.
			if err := rdb.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
				return err
			}
			for _, other := range c.nodes[:i] {
				if err := rdb.Do(ctx, "CLUSTER", "MEET", "127.0.0.1", other.port()).Err(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// await polls the nodes until the cluster is available.
func (c *trio) await() error {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := c.well()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// well returns nil if each node reports that it knows all nodes and that the cluster
// is available.
func (c *trio) well() error {
	return c.tell(func(ctx context.Context, rdb *redis.Client) error {
		info, err := rdb.ClusterInfo(ctx).Result()
		if err != nil {
			return err
		}
		lines := strings.Split(info, "\r\n")
		known := fmt.Sprintf("cluster_known_nodes:%d", len(c.nodes))
		for _, want := range []string{"cluster_state:ok", "cluster_slots_ok:16384", known, "cluster_size:3"} {
			if !slices.Contains(lines, want) {
				return fmt.Errorf("the cluster is not ready: not %s in\n%s", want, info)
			}
		}
		return nil
	})
}

// clean removes all data and scripts.
func (c *trio) clean() error {
	return c.tell(func(ctx context.Context, rdb *redis.Client) error {
		return errors.Join(rdb.FlushAll(ctx).Err(), rdb.ScriptFlush(ctx).Err())
	})
}

// tell calls do with a client of each node, up to the first error.
func (c *trio) tell(do func(context.Context, *redis.Client) error) error {
	for _, d := range c.nodes {
		if err := d.tell(do); err != nil {
			return err
		}
	}
	return nil
}

// runs reports whether all nodes run.
func (c *trio) runs() bool {
	for _, d := range c.nodes {
		select {
		case <-d.ended:
			return false
		default:
		}
	}
	return true
}

// resume continues the nodes that are paused.
func (c *trio) resume() {
	for _, d := range c.nodes {
		_ = d.cmd.Process.Signal(SignalContinue)
	}
}

func (c *trio) kill() {
	for _, d := range c.nodes {
		d.kill()
	}
}

func (c *trio) end() {
	c.kill()
	_ = os.RemoveAll(c.dir)
	if c.janitor != nil {
		c.janitor.end()
	}
}

// tell calls do with a client of d.
func (d *daemon) tell(do func(context.Context, *redis.Client) error) error {
	opt := quick()
	opt.Network, opt.Addr = d.network, d.addr
	rdb := redis.NewClient(opt)
	defer rdb.Close()
	return do(context.Background(), rdb)
}
