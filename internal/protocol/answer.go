package protocol

import (
	"fmt"
	"strconv"
	"time"
)

// An answer reads a script's reply. The reply may have any shape: a proxy, or another program's
// command, may have answered in the place of the script.
type answer struct {
	reply any
	bad   bool
}

func (a *answer) at(i int) any {
	list, ok := a.reply.([]any)
	if !ok || i >= len(list) {
		a.bad = true
		return nil
	}
	return list[i]
}

func (a *answer) text(i int) string {
	s, ok := a.at(i).(string)
	if !ok {
		a.bad = true
	}
	return s
}

func (a *answer) number(i int) int64 {
	n, err := strconv.ParseInt(a.text(i), 10, 64)
	if err != nil {
		a.bad = true
	}
	return n
}

func (a *answer) millis(i int) time.Duration {
	n, ok := a.at(i).(int64)
	if !ok {
		a.bad = true
	}
	return time.Duration(min(max(n, 0), int64(100*365*24*time.Hour/time.Millisecond))) * time.Millisecond
}

// optionalTime reads a time that only some answers have.
func (a *answer) optionalTime(i int) time.Time {
	if list, ok := a.reply.([]any); ok && i >= len(list) {
		return time.Time{}
	}
	return time.UnixMicro(a.number(i))
}

func (a *answer) err() error {
	if !a.bad {
		return nil
	}
	return errShape(a.reply)
}

func errShape(reply any) error {
	return fmt.Errorf("a script answered in a shape that is not ours (%T)", reply) // not its text, which may be a value
}
