//go:build !unix

package run

import "time"

// cpuTime returns 0: nothing is measured where no server is started.
func cpuTime() time.Duration { return 0 }
