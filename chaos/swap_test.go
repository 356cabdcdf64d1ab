//go:build linux

package main

import (
	"testing"

	"github.com/redis/go-redis/v9"
)

// A script with the old text is replaced whether it is sent by its text or by its hash.
func TestSwapReplacesAScriptByTextAndByHash(t *testing.T) {
	s := &swap{Old: "return 1", New: "return 2"}
	with, without := "local x\nreturn 1", "return 3"
	ctx := t.Context()
	for _, step := range []struct{ command, text, want string }{
		{"evalsha", hash(with), hash(with)}, // the server does not have it
		{"eval", with, "local x\nreturn 2"},
		{"evalsha", hash(with), hash("local x\nreturn 2")},
		{"eval", without, without},
		{"evalsha", hash(without), hash(without)},
		{"set", with, with},
	} {
		cmd := redis.NewCmd(ctx, step.command, step.text, 0)
		s.replace(cmd)
		if got := cmd.Args()[1]; got != step.want {
			t.Errorf("%s %q was sent with %q, want %q", step.command, step.text, got, step.want)
		}
	}
}
