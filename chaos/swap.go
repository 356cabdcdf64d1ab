//go:build linux

package main

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// swapVariable is the environment variable that has the workers send another script
// than the library's: a mutant, which need not be built for that.
const swapVariable = "FETCHONCE_CHAOS_SWAP"

// A swap is a hook of a Redis client. It puts one text in the place of another, in
// all scripts that have it.
type swap struct {
	Old, New string

	hashes sync.Map // of the scripts with Old: that of the one with New
}

// swapOf returns the swap that the environment asks for, or nil.
func swapOf(environment string) (*swap, error) {
	text := os.Getenv(environment)
	if text == "" {
		return nil, nil //nolint:nilnil // there is none, and nothing is wrong
	}
	s := new(swap)
	return s, json.Unmarshal([]byte(text), s)
}

// in changes a command that runs a script. The server does not know the old one, so
// it is sent with its text once.
func (s *swap) in(cmd redis.Cmder) {
	args := cmd.Args()
	if len(args) < 2 {
		return
	}
	text, _ := args[1].(string)
	switch args[0] {
	case "eval":
		if !strings.Contains(text, s.Old) {
			return
		}
		swapped := strings.Replace(text, s.Old, s.New, 1)
		s.hashes.Store(hash(text), hash(swapped))
		args[1] = swapped
	case "evalsha":
		if swapped, ok := s.hashes.Load(text); ok {
			args[1] = swapped
		}
	}
}

// hash is how Redis names a script.
func hash(text string) string {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // it is no safeguard
	return hex.EncodeToString(sum[:])
}

// DialHook makes a swap a [redis.Hook], as do the methods below.
func (s *swap) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook changes a command.
func (s *swap) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		s.in(cmd)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook changes the commands of a pipeline.
func (s *swap) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			s.in(cmd)
		}
		return next(ctx, cmds)
	}
}
