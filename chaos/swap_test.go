//go:build linux

package main

import (
	"testing"

	"github.com/redis/go-redis/v9"
)

// A script is swapped whether it is sent with its text or by its hash, and no other.
func TestSwap(t *testing.T) {
	s := &swap{Old: "return 1", New: "return 2"}
	with, without := "local x\nreturn 1", "return 3"
	ctx := t.Context()
	for _, step := range []struct{ command, text, want string }{
		{"evalsha", hash(with), hash(with)}, // which no server knows
		{"eval", with, "local x\nreturn 2"},
		{"evalsha", hash(with), hash("local x\nreturn 2")},
		{"eval", without, without},
		{"evalsha", hash(without), hash(without)},
		{"set", with, with},
	} {
		cmd := redis.NewCmd(ctx, step.command, step.text, 0)
		s.in(cmd)
		if got := cmd.Args()[1]; got != step.want {
			t.Errorf("%s %q was sent with %q, want %q", step.command, step.text, got, step.want)
		}
	}
}
