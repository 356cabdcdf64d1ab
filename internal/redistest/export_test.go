package redistest

// Until is the implementation of every Backend's Until.
var Until = until

// IdleClusters returns the number of clusters that no test uses.
func IdleClusters() int {
	idle.Lock()
	defer idle.Unlock()
	return len(idle.trios)
}
