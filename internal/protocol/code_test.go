package protocol_test

import (
	"testing"

	"github.com/fetchonce/fetchonce/internal/protocol"
)

// Redis 6.2 writes the place in the script before the code.
func TestCodesOfAllServerVersions(t *testing.T) {
	const old = "ERR Error running script (call to f_97322b73854f0bcd1121a89ea108ac6a94f064ce): @user_script:143: "
	const internal = old + "@user_script: 143: "
	const behind = " script: 97322b73854f0bcd1121a89ea108ac6a94f064ce, on @user_script:143."
	for name, c := range map[string]struct {
		is    func(error) bool
		texts []string
	}{
		"read-only": {protocol.IsReadOnly, []string{
			"READONLY You can't write against a read only replica.",
			"READONLY You can't write against a read only replica." + behind,
			internal + "-READONLY You can't write against a read only replica.",
			old + "READONLY You can't write against a read only replica.",
		}},
		"passing": {protocol.Passing, []string{
			"LOADING Redis is loading the dataset in memory",
			internal + "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
			internal + "-READONLY You can't write against a read only replica.",
		}},
		"final": {protocol.IsFinal, []string{
			"WRONGTYPE Operation against a key holding the wrong kind of value" + behind,
			old + "WRONGTYPE Operation against a key holding the wrong kind of value",
			"NOPERM this user has no permissions to run the 'hdel' command" + behind,
			internal + "The user executing the script can't run this command or subcommand",
			internal + "The user executing the script can't access at least one of the keys mentioned in the command arguments",
			"ERR unknown command 'evalsha'",
			internal + "Unknown Redis command called from Lua script",
			"ERR Unknown Redis command called from script" + behind,
		}},
		"TRYAGAIN": {protocol.IsTryAgain, []string{
			"TRYAGAIN Multiple keys request during rehashing of slot",
			old + "TRYAGAIN Multiple keys request during rehashing of slot",
		}},
	} {
		for _, text := range c.texts {
			if !c.is(answered(text)) {
				t.Errorf("%q is not %s", text, name)
			}
		}
		for _, text := range []string{
			"OOM command not allowed when used memory > 'maxmemory'." + behind,
			internal + "-OOM command not allowed when used memory > 'maxmemory'.",
			old + "ERR value is not an integer or out of range",
			"ERR Error running script", "ERR something WRONGTYPE READONLY", "",
		} {
			if c.is(answered(text)) {
				t.Errorf("%q is %s", text, name)
			}
		}
	}
}
