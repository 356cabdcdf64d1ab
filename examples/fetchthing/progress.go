package main

import (
	"fmt"
	"os"
	"time"
)

// A progress is a line that says how far a round is: one that is written over
// and over on a terminal, one each second elsewhere.
type progress struct {
	out      *os.File
	terminal bool
	title    string
	all      int // answers to come
	began    time.Time
	shown    time.Time
}

func startProgress(out *os.File, r *result) *progress {
	info, err := out.Stat()
	return &progress{
		out:      out,
		terminal: err == nil && info.Mode()&os.ModeCharDevice != 0,
		title:    string(r.kind),
		all:      r.asked * len(r.names),
		began:    time.Now(),
	}
}

func (p *progress) show(answers, calls int) {
	now := time.Now()
	if !p.terminal && now.Sub(p.shown) < time.Second {
		return
	}
	p.shown = now
	line := fmt.Sprintf("%s: %d of %d callers answered, %d remote calls, %.1fs", p.title, answers, p.all, calls, now.Sub(p.began).Seconds())
	if p.terminal {
		_, _ = fmt.Fprint(p.out, "\r\033[K"+line) // \033[K clears what was there
	} else {
		_, _ = fmt.Fprintln(p.out, line)
	}
}

func (p *progress) end() {
	if p.terminal {
		_, _ = fmt.Fprint(p.out, "\r\033[K")
	}
}
