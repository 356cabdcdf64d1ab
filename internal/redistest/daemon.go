package redistest

import (
	"bufio"
	"bytes"
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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/programs"
)

// patience limits how long a test waits for a server, a cluster or a condition.
const patience = 20 * time.Second

// A daemon is a redis-server that this package starts, and can start again.
type daemon struct {
	network, addr string
	dir           string
	args          []string

	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// Binary returns the path of redis-server. Without one, it skips the test, or
// fails it if FETCHONCE_REQUIRE_SERVERS is 1.
func Binary(t testing.TB) string {
	t.Helper()
	bin, err := programs.Redis()
	if errors.Is(err, programs.ErrNoRedis) {
		programs.Missing(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// unixDaemon returns a daemon that listens on a socket in dir.
func unixDaemon(bin, dir string, args ...string) *daemon {
	sock := filepath.Join(dir, "redis.sock")
	return newDaemon(bin, dir, "unix", sock, append([]string{"--port", "0", "--unixsocket", sock}, args...))
}

// tcpDaemon returns a daemon that listens on a loopback port.
func tcpDaemon(bin, dir string, port int, args ...string) *daemon {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return newDaemon(bin, dir, "tcp", addr, append([]string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1"}, args...))
}

func newDaemon(bin, dir, network, addr string, args []string) *daemon {
	args = append([]string{bin, "--dir", dir, "--save", "", "--appendonly", "no", "--daemonize", "no"}, slices.Concat(limits, args)...)
	return &daemon{network: network, addr: addr, dir: dir, args: args}
}

// start starts d and returns when it answers and has the extra rights.
func (d *daemon) start() error {
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command(d.args[0], d.args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := startProcess(d.cmd); err != nil {
		return err
	}
	ended := make(chan struct{})
	d.ended = ended
	go func() {
		_ = d.cmd.Wait()
		close(ended)
	}()
	err = d.await()
	if err == nil {
		err = d.addExtras()
	}
	if err != nil {
		d.kill()
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w\n%s\n%s", err, strings.Join(d.args, " "), bytes.TrimSpace(said))
	}
	return nil
}

// await polls d until it answers.
func (d *daemon) await() error {
	for deadline := time.Now().Add(patience); ; {
		err := d.answers()
		if err == nil || errors.Is(err, errOther) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("redis-server does not answer: %w", err)
		}
		select {
		case <-d.ended:
			return errors.New("redis-server ended at once")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// errOther reports that another server listens on the address of a daemon.
var errOther = errors.New("another server has this address")

// answers returns nil if the server that answers on the address of d is d.
func (d *daemon) answers() error {
	c, err := net.DialTimeout(d.network, d.addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("INFO server\r\n")); err != nil {
		return err
	}
	for lines := bufio.NewScanner(c); lines.Scan(); {
		line := lines.Text()
		switch pid, isPid := strings.CutPrefix(line, "process_id:"); {
		case strings.HasPrefix(line, "-LOADING"):
			return errors.New(line)
		case strings.HasPrefix(line, "-"): // The server denies INFO, but it answers.
			return nil
		case isPid && pid != strconv.Itoa(d.cmd.Process.Pid):
			return errOther
		case isPid:
			return nil
		}
	}
	return errors.New("no answer to INFO")
}

// kill ends the process (SIGKILL) and waits until it has ended.
func (d *daemon) kill() {
	if d.ended == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.ended
}

// starters returns a channel to a goroutine that is locked to an OS thread. The
// kernel ends a process "with its parent" when the thread that started it ends, and
// the Go runtime may end any other thread.
var starters = sync.OnceValue(func() chan<- func() {
	starters := make(chan func())
	go func() {
		runtime.LockOSThread()
		for start := range starters {
			start()
		}
	}()
	return starters
})

// startProcess starts a process. On Linux the process ends when this process does,
// also if this process is killed.
func startProcess(cmd *exec.Cmd) error {
	endWithParent(cmd)
	err := make(chan error)
	starters() <- func() { err <- cmd.Start() }
	return <-err
}

// shortDir returns a new directory with a path short enough for a socket. The path
// of a socket has a little more than a hundred bytes; t.TempDir may exceed that.
func shortDir() (string, error) {
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil || len(dir) < 80 {
		return dir, err
	}
	if err := os.Remove(dir); err != nil {
		return "", err
	}
	return os.MkdirTemp("/tmp", "redistest")
}

// busAbove is the offset from a node's port to the port of its cluster bus.
const busAbove = 10_000

// freePort returns a free loopback port whose port for the cluster bus is also free.
// Both are below Linux's default range of ephemeral ports, and neither is 6379.
func freePort() (int, error) {
	for range 100 {
		port := 12_000 + rand.IntN(10_000)
		if isFree(port) && isFree(port+busAbove) {
			return port, nil
		}
	}
	return 0, errors.New("no free port")
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// port returns the port of a daemon that listens on one.
func (d *daemon) port() int {
	_, port, _ := net.SplitHostPort(d.addr)
	n, _ := strconv.Atoi(port) // tcpDaemon makes addr from a number
	return n
}
