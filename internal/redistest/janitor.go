package redistest

import (
	_ "embed"
	"io"
	"os/exec"
)

// pidfile is the name of the file that contains a node's process id.
const pidfile = "redis.pid"

//go:embed janitor.sh
var janitorScript string

// A janitor is a process that ends a cluster and removes its files. A cluster may
// outlive its tests, and this package has no hook that runs when the test binary ends.
type janitor struct {
	cmd   *exec.Cmd
	stdin io.Closer // closed by end, or when this process ends
}

// startJanitor starts a janitor for the cluster in dir.
func startJanitor(dir string) (*janitor, error) {
	cmd := exec.Command("sh", "-c", janitorScript, "sh", dir, pidfile)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &janitor{cmd, stdin}, cmd.Start()
}

// end ends the janitor. Its callers have ended the nodes and removed the directory.
func (j *janitor) end() {
	_ = j.stdin.Close()
	_ = j.cmd.Wait()
}
