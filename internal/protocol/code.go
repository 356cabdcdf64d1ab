package protocol

import (
	"errors"
	"regexp"
	"strings"

	"github.com/redis/go-redis/v9"
)

// inScript matches the text that Redis 6.2 and older put before the error of a command in a
// script: "ERR Error running script (call to f_0123): @user_script:7: @user_script: 7: -READONLY ...".
// Newer servers put such a text after the error.
var inScript = regexp.MustCompile(`^ERR Error running script \(call to \w*\): (?:@user_script: ?\d+: )*-?`)

// hasCode reports whether err is an answer of Redis with one of the codes, whatever the version of
// the server.
func hasCode(err error, codes ...string) bool {
	answered, ok := errors.AsType[redis.Error](err)
	if !ok {
		return false
	}
	text := answered.Error()
	text = strings.TrimPrefix(text[len(inScript.FindString(text)):], "ERR ")
	for _, code := range codes {
		if strings.HasPrefix(text, code) {
			return true
		}
	}
	return false
}
