//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// servers are all the nodes of a Redis.
type servers struct {
	place     place
	nodes     []*node
	sentinels []*node
	all       redis.UniversalClient // of all nodes, without proxies
}

// startServers starts a Redis of a profile.
func startServers(profile, dir string) (s *servers, err error) {
	s = &servers{place: place{Profile: profile}}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	switch profile {
	case "standalone":
		err = s.startStandalone(dir)
	case "sentinel":
		err = s.startSentinel(dir)
	case "cluster":
		err = s.startCluster(dir, true, "--cluster-node-timeout", "1000")
	case illnode:
		// With the default of 15 s, no node counts as failed: it hangs for less, and serves
		// again at once.
		err = s.startCluster(dir, false, "--cluster-node-timeout", "15000")
	case full:
		err = s.startStandalone(dir)
	default:
		err = fmt.Errorf("there is no profile %q", profile)
	}
	if err != nil {
		return nil, err
	}
	s.all = s.place.client(nil)
	return s, nil
}

func (s *servers) add(dir string, args ...string) (*node, error) {
	n, err := newServer(dir, args...)
	if err != nil {
		return nil, err
	}
	s.nodes = append(s.nodes, n)
	return n, n.start()
}

func (s *servers) startStandalone(dir string) error {
	n, err := s.add(dir)
	if err == nil {
		s.place.Addrs = []string{n.addr}
	}
	return err
}

// startSentinel starts a master with two replicas, and three Sentinels.
func (s *servers) startSentinel(dir string) error {
	master, err := s.add(dir)
	if err != nil {
		return err
	}
	for range 2 {
		replica, err := s.add(dir)
		if err != nil {
			return err
		}
		if err := replica.do("REPLICAOF", "127.0.0.1", master.port()); err != nil {
			return err
		}
	}
	if err := s.online(master); err != nil {
		return err
	}
	for range 3 {
		n, err := newNode(dir, "sentinel", "--sentinel", "resolve-hostnames", "no")
		if err != nil {
			return err
		}
		conf := strings.Join([]string{
			"sentinel monitor " + masterName + " 127.0.0.1 " + master.port() + " 2",
			"sentinel auth-pass " + masterName + " " + password,
			"sentinel sentinel-pass " + password,
			// A Sentinel sends the first PING to a new master a second after the switch. With
			// less than that, it would replace the new master at once.
			"sentinel down-after-milliseconds " + masterName + " 1500",
			"sentinel failover-timeout " + masterName + " 3000",
			"sentinel parallel-syncs " + masterName + " 2",
		}, "\n")
		file := filepath.Join(n.dir, "conf")
		if err := os.WriteFile(file, []byte(conf+"\n"), 0o600); err != nil {
			return err
		}
		n.args = slices.Insert(n.args, 0, file)
		s.sentinels = append(s.sentinels, n)
		if err := n.start(); err != nil {
			return err
		}
		s.place.Addrs = append(s.place.Addrs, n.addr)
	}
	return s.awaitSentinels()
}

// online waits until a master has two replicas that are up to date.
func (s *servers) online(master *node) error {
	return until("two replicas are online", func() error {
		info, err := master.rdb.Info(context.Background(), "replication").Result()
		if err == nil && strings.Count(info, "state=online") < 2 {
			err = errors.New(info)
		}
		return err
	})
}

// awaitSentinels waits until each Sentinel knows two others and two replicas.
func (s *servers) awaitSentinels() error {
	for _, n := range s.sentinels {
		err := until("the Sentinels know each other", func() error {
			known, err := redis.NewSentinelClient(n.rdb.Options()).Master(context.Background(), masterName).Result()
			if err == nil && (known["num-other-sentinels"] != "2" || known["num-slaves"] != "2" || known["flags"] != "master") {
				err = fmt.Errorf("%v", known)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// clusterMasters is how many masters a cluster has.
const clusterMasters = 3

// startCluster starts three masters, each with a replica if there are to be replicas.
func (s *servers) startCluster(dir string, replicas bool, args ...string) error {
	nodes := clusterMasters
	if replicas {
		nodes *= 2
	}
	args = append(args, "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0")
	for range nodes {
		n, err := s.add(dir, args...)
		if err != nil {
			return err
		}
		s.place.Addrs = append(s.place.Addrs, n.addr)
	}
	for i, n := range s.nodes {
		if i < clusterMasters {
			if err := n.do("CLUSTER", "ADDSLOTSRANGE", 16384*i/clusterMasters, 16384*(i+1)/clusterMasters-1); err != nil {
				return err
			}
		}
		if err := errors.Join(n.do("CLUSTER", "SET-CONFIG-EPOCH", i+1), n.do("CLUSTER", "MEET", "127.0.0.1", s.nodes[0].port())); err != nil {
			return err
		}
	}
	for i, n := range s.nodes[clusterMasters:] {
		id, err := s.nodes[i].rdb.Do(context.Background(), "CLUSTER", "MYID").Text()
		if err != nil {
			return err
		}
		if err := until("a replica knows its master", func() error { return n.do("CLUSTER", "REPLICATE", id) }); err != nil {
			return err
		}
	}
	return s.awaitCluster()
}

// awaitCluster waits until all nodes say that the cluster is healthy, and each master has its replica
// if there are replicas.
func (s *servers) awaitCluster() error {
	return until("the cluster is healthy", func() error {
		for _, n := range s.nodes {
			info, err := n.rdb.ClusterInfo(context.Background()).Result()
			if err != nil {
				return err
			}
			for _, want := range []string{"cluster_state:ok", "cluster_slots_ok:16384", fmt.Sprintf("cluster_known_nodes:%d", len(s.nodes)), "cluster_size:3"} {
				if !strings.Contains(info, want) {
					return fmt.Errorf("not %s in %s", want, info)
				}
			}
			if len(s.nodes) == clusterMasters {
				continue
			}
			replication, err := n.rdb.Info(context.Background(), "replication").Result()
			if err != nil {
				return err
			}
			if !strings.Contains(replication, "state=online") && !strings.Contains(replication, "master_link_status:up") {
				return errors.New("a master without a replica, or the reverse")
			}
		}
		return nil
	})
}

// awaitHealthy waits until all nodes work as at the start. The masters may be other nodes.
func (s *servers) awaitHealthy() error {
	switch s.place.Profile {
	case "sentinel":
		if err := s.awaitSentinels(); err != nil {
			return err
		}
		masters, err := s.masters()
		if err != nil {
			return err
		}
		return s.online(masters[0])
	case "cluster", illnode:
		return s.awaitCluster()
	}
	return nil
}

// masters returns the current masters.
func (s *servers) masters() (masters []*node, err error) {
	if s.place.Profile == "sentinel" {
		return s.sentinelMaster()
	}
	for _, n := range s.nodes {
		info, err := n.rdb.Info(context.Background(), "replication").Result()
		if err == nil && strings.Contains(info, "role:master") {
			masters = append(masters, n)
		}
	}
	if len(masters) == 0 {
		err = errors.New("there is no master")
	}
	return masters, err
}

// sentinelMaster returns the master that all Sentinels agree on.
func (s *servers) sentinelMaster() ([]*node, error) {
	var master *node
	for _, sentinel := range s.sentinels {
		addr, err := redis.NewSentinelClient(sentinel.rdb.Options()).GetMasterAddrByName(context.Background(), masterName).Result()
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(s.nodes, func(n *node) bool { return n.port() == addr[1] })
		if i < 0 || master != nil && master != s.nodes[i] {
			return nil, errors.New("the Sentinels do not agree")
		}
		master = s.nodes[i]
	}
	return []*node{master}, nil
}

// failOver kills or stops a master until another has replaced it, and brings it back as a replica. It
// calls found with the new masters. It calls over when the failover has no more effects: after a kill,
// when there is another master; after a stop, when the old one no longer answers as a master.
func (s *servers) failOver(master *node, stop bool, found func([]*node), over func()) error {
	before, err := s.masters()
	if err != nil {
		return err
	}
	if stop {
		master.signal(syscall.SIGSTOP)
		defer master.signal(syscall.SIGCONT)
	} else {
		master.kill()
	}
	var now []*node
	err = until("another node is the master", func() error {
		if now, err = s.masters(); err != nil {
			return err
		}
		if len(now) < len(before) || slices.Contains(now, master) {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil {
		return err
	}
	found(now)
	if stop {
		master.signal(syscall.SIGCONT)
	} else {
		over()
		var args []string
		if s.place.Profile == "sentinel" {
			args = []string{"--replicaof", "127.0.0.1", now[0].port()}
		}
		if err := master.start(args...); err != nil {
			return err
		}
	}
	if stop && s.place.Profile == "sentinel" { // the Sentinels would do so after 8 s
		if err := until("the old master is demoted", func() error { return master.demote(now[0]) }); err != nil {
			return err
		}
	}
	err = s.awaitHealthy()
	if stop {
		over()
	}
	return err
}

// errEmpty says that a slot has no keys, so that moving it would test nothing.
var errEmpty = errors.New("the slot is empty")

// moveSlot moves the slot of a key and all its keys to another master, one by one, as a live
// resharding does.
func (s *servers) moveSlot(ctx context.Context, key string) error {
	slot, err := s.all.ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return err
	}
	masters, err := s.masters()
	if err != nil {
		return err
	}
	ids := make([]string, len(masters))
	from := -1
	for i, m := range masters {
		if ids[i], err = m.rdb.Do(ctx, "CLUSTER", "MYID").Text(); err != nil {
			return err
		}
		count, err := m.rdb.ClusterCountKeysInSlot(ctx, int(slot)).Result()
		if err != nil {
			return err
		}
		if count > 0 {
			from = i
		}
	}
	if from < 0 {
		return errEmpty
	}
	to := (from + 1) % len(masters)
	source, target := masters[from], masters[to]
	if err := errors.Join(
		target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[from]),
		source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to]),
	); err != nil {
		return err
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		names, err := source.rdb.ClusterGetKeysInSlot(ctx, int(slot), 1).Result()
		if err != nil {
			return err
		}
		if len(names) == 0 {
			break
		}
		if err := source.do("MIGRATE", "127.0.0.1", target.port(), names[0], 0, 1000, "REPLACE", "AUTH", password); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond) // for a while, both nodes have keys of the slot
	}
	for _, n := range []*node{target, source} {
		if err := n.do("CLUSTER", "SETSLOT", slot, "NODE", ids[to]); err != nil {
			return err
		}
	}
	for _, n := range s.nodes {
		_ = n.do("CLUSTER", "SETSLOT", slot, "NODE", ids[to]) // replicas refuse, and receive the change from their masters
	}
	return nil
}

// stop ends all nodes.
func (s *servers) stop() {
	if s.all != nil {
		_ = s.all.Close()
	}
	for _, n := range append(slices.Clone(s.sentinels), s.nodes...) {
		n.kill()
		_ = n.rdb.Close()
	}
}

// keepLogs copies the logs of the nodes to dir.
func (s *servers) keepLogs(dir string) {
	for _, n := range append(slices.Clone(s.sentinels), s.nodes...) {
		if text, err := os.ReadFile(filepath.Join(n.dir, "log")); err == nil {
			_ = os.WriteFile(filepath.Join(dir, "server-"+filepath.Base(n.dir)), text, 0o600)
		}
	}
}
