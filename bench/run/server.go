package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/daemon"
	"github.com/fetchonce/fetchonce/internal/programs"
)

// A server is the redis-server of one run. It stores nothing on disk.
type server struct {
	addr    string
	version string
	daemon  *daemon.Daemon
	rdb     *redis.Client
}

// startServer starts one on a free port of the loopback interface.
func startServer() (*server, error) {
	bin, err := programs.Redis()
	if err != nil {
		return nil, fmt.Errorf("the benchmark needs a server: %w", err)
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(daemon.TempDir(), "bench")
	if err != nil {
		return nil, err
	}
	s := &server{addr: addr, rdb: redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, PoolSize: 1})}
	_, port, _ := net.SplitHostPort(addr)
	s.daemon, err = daemon.Start(daemon.Options{
		Dir: dir, Remove: true, Signal: "KILL", Ready: s.answers,
		As: daemon.OwnGroup, // ^C ends this process, which then stops the server
	}, bin, "--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "no")
	if err != nil {
		return nil, errors.Join(err, s.rdb.Close())
	}
	return s, nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (s *server) answers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	info, err := s.info(ctx, "server")
	s.version = info["redis_version"]
	return err == nil
}

func (s *server) stop() error {
	return errors.Join(s.rdb.Close(), s.daemon.Stop())
}

// A redisUsage is the work of a server since its start.
type redisUsage struct {
	cpu      time.Duration
	commands float64 // with those that scripts call
	reads    float64 // reads from connections; a pipeline is one read
	in, out  float64 // bytes
}

func (u redisUsage) minus(v redisUsage) redisUsage {
	return redisUsage{
		cpu:      u.cpu - v.cpu,
		commands: u.commands - v.commands - 2, // the commands that read u
		reads:    u.reads - v.reads - 2,
		in:       u.in - v.in,
		out:      u.out - v.out,
	}
}

func (s *server) usage() (u redisUsage, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cpu, err := s.info(ctx, "cpu")
	if err != nil {
		return u, err
	}
	stats, err := s.info(ctx, "stats")
	if err != nil {
		return u, err
	}
	number := func(info map[string]string, name string) float64 {
		n, bad := strconv.ParseFloat(info[name], 64)
		if bad != nil {
			err = errors.Join(err, fmt.Errorf("INFO: %s: %w", name, bad))
		}
		return n
	}
	u.cpu = time.Duration(float64(time.Second) * (number(cpu, "used_cpu_user") + number(cpu, "used_cpu_sys")))
	u.commands, u.reads = number(stats, "total_commands_processed"), number(stats, "total_reads_processed")
	u.in, u.out = number(stats, "total_net_input_bytes"), number(stats, "total_net_output_bytes")
	return u, err
}

func (s *server) info(ctx context.Context, section string) (map[string]string, error) {
	text, err := s.rdb.Info(ctx, section).Result()
	if err != nil {
		return nil, err
	}
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		info[name] = value
	}
	return info, nil
}
