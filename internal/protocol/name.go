package protocol

import "github.com/redis/go-redis/v9"

// ScriptName returns the name of the script that a command runs: acquire, fill, release, renew,
// invalidate, set, lock_acquire, lock_release or lock_renew, or "" if it runs none of them. Tests
// use it to stop a process at a step.
func ScriptName(cmd redis.Cmder) string {
	args := cmd.Args()
	if len(args) < 2 {
		return ""
	}
	for name, s := range map[string]*script{
		"acquire": acquire, "fill": fill, "release": release, "renew": renew, "invalidate": invalidate, "set": set,
		"lock_acquire": lockAcquire, "lock_release": lockRelease, "lock_renew": lockRenew,
	} {
		if args[1] == s.hash || args[1] == s.text {
			return name
		}
	}
	return ""
}
