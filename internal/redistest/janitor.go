package redistest

import (
	_ "embed"
	"io"
	"os/exec"
)

// pidfile is the name of the file with a node's process id.
const pidfile = "redis.pid"

//go:embed janitor.sh
var janitorScript string

// A janitor clears up after a cluster that outlives its tests: a test binary has
// no place where it could do so itself before it ends.
type janitor struct {
	cmd   *exec.Cmd
	stdin io.Closer // closed by us, or when our process has ended
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

// end lets the janitor go, when the directory and its processes are gone.
func (j *janitor) end() {
	_ = j.stdin.Close()
	_ = j.cmd.Wait()
}
