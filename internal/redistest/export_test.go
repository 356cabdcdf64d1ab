package redistest

// Until is that of every Backend.
var Until = until

// IdleClusters returns how many clusters wait for their next test.
func IdleClusters() int {
	idle.Lock()
	defer idle.Unlock()
	return len(idle.trios)
}
