//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/programs"
)

// patience is how long a server, a worker or a failover may take.
const patience = 30 * time.Second

// starters starts processes on one OS thread that never ends. The kernel kills a process when the
// thread that started it ends, and Go may end threads.
var starters = sync.OnceValue(func() chan<- func() {
	starters := make(chan func())
	go func() { // ends with the program
		runtime.LockOSThread()
		for start := range starters {
			start()
		}
	}()
	return starters
})

// launch starts a process that ends with this one at the latest.
func launch(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := make(chan error)
	starters() <- func() { err <- cmd.Start() }
	return <-err
}

// A node is a redis-server, or a Sentinel.
type node struct {
	addr string
	args []string
	dir  string
	rdb  *redis.Client // the supervisor's client, without a proxy

	cmd   *exec.Cmd
	ended chan struct{}
}

// newNode returns a node on a free port. Its directory is in dir, with a name that begins with kind.
func newNode(dir, kind string, args ...string) (*node, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	n := &node{addr: "127.0.0.1:" + strconv.Itoa(port), dir: filepath.Join(dir, kind+"-"+strconv.Itoa(port))}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return nil, err
	}
	n.args = append(n.args, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", n.dir, "--requirepass", password)
	n.args = append(n.args, args...)
	n.rdb = redis.NewClient(&redis.Options{Addr: n.addr, Password: password, MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: time.Second, PoolSize: 4, ContextTimeoutEnabled: true})
	return n, nil
}

// newServer returns a redis-server that stores nothing on disk and syncs replicas at once.
func newServer(dir string, args ...string) (*node, error) {
	return newNode(dir, "server", append([]string{"--save", "", "--appendonly", "no", "--masterauth", password, "--repl-diskless-sync-delay", "0"}, args...)...)
}

// freePort returns a free port whose cluster bus port is free too. Both are below the ports that the
// kernel chooses.
func freePort() (int, error) {
	for range 100 {
		port := 12_000 + rand.IntN(10_000)
		if isFree(port) && isFree(port+10_000) {
			return port, nil
		}
	}
	return 0, errors.New("no free port")
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func (n *node) port() string {
	_, port, _ := net.SplitHostPort(n.addr)
	return port
}

// start starts the node with optional further arguments and waits until it answers.
func (n *node) start(args ...string) error {
	bin, err := programs.Redis()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	n.cmd = exec.Command(bin, append(slices.Clone(n.args), args...)...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := launch(n.cmd); err != nil {
		return err
	}
	ended := make(chan struct{})
	n.ended = ended
	cmd := n.cmd
	go func() { // ends with the process
		_ = cmd.Wait()
		close(ended)
	}()
	return until(n.addr+" answers", func() error { return n.rdb.Ping(context.Background()).Err() })
}

// kill ends the process.
func (n *node) kill() {
	if n.ended == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	<-n.ended
}

func (n *node) signal(s syscall.Signal) { _ = n.cmd.Process.Signal(s) }

func (n *node) do(args ...any) error { return n.rdb.Do(context.Background(), args...).Err() }

// isMaster reports whether the node says that it is a master.
func (n *node) isMaster(ctx context.Context) (bool, error) {
	role, err := n.rdb.Do(ctx, "ROLE").Slice()
	return err == nil && role[0] == "master", err
}

// demote makes the node a replica of master, as a Sentinel does. It closes the connections of clients,
// so that they look up the master again.
func (n *node) demote(master *node) error {
	ctx := context.Background()
	_, err := n.rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		tx.Do(ctx, "REPLICAOF", "127.0.0.1", master.port())
		tx.Do(ctx, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		tx.Do(ctx, "CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
		return nil
	})
	return err
}

// until waits until ok returns nil.
func until(what string, ok func() error) error {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := ok()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not reached in time: %s: %w", what, err)
		}
	}
}

// isStopped reports whether a process is stopped by a signal.
func isStopped(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := bytes.Cut(b, []byte(") "))
	return err == nil && bytes.HasPrefix(state, []byte("T"))
}
