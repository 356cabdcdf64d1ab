//go:build linux

package main

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// swapVariable is the environment variable that makes workers send another script than the library's.
// So a mutant of a script needs no build.
const swapVariable = "FETCHONCE_CHAOS_SWAP"

// A swap replaces one text with another in all scripts of a client that contain it.
type swap struct {
	Old, New string

	hashes sync.Map // hash of a script with Old -> hash of the script with New
}

// swapOf returns the swap that the environment asks for, or nil.
func swapOf(environment string) (*swap, error) {
	text := os.Getenv(environment)
	if text == "" {
		return nil, nil //nolint:nilnil // no swap is no error
	}
	s := new(swap)
	return s, json.Unmarshal([]byte(text), s)
}

// around is a [sendHook] that replaces the scripts.
func (s *swap) around(cmds []redis.Cmder, send func() error) error {
	for _, cmd := range cmds {
		s.replace(cmd)
	}
	return send()
}

// replace changes a command that runs a script. The server has never received the old script, so the
// client sends the text once, which replace changes too.
func (s *swap) replace(cmd redis.Cmder) {
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

// hash returns the hash by which Redis names a script.
func hash(text string) string {
	sum := sha1.Sum([]byte(text)) //nolint:gosec // Redis uses SHA-1
	return hex.EncodeToString(sum[:])
}
