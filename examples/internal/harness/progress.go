package harness

import (
	"fmt"
	"os"
	"time"
)

// A Progress is a line that shows how far a round is. On a terminal, each line replaces the
// one before. Elsewhere, it prints at most one line per second.
type Progress struct {
	out      *os.File
	terminal bool
	shown    time.Time
}

// NewProgress returns a Progress that writes to out.
func NewProgress(out *os.File) *Progress {
	info, err := out.Stat()
	return &Progress{out: out, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// clearLine moves to the start of a terminal's line and clears it.
const clearLine = "\r\033[K"

// Show shows a line. If the output is no terminal, it drops a line that comes less than a
// second after the last.
func (p *Progress) Show(line string) {
	switch {
	case p.terminal:
		_, _ = fmt.Fprint(p.out, clearLine+line)
	case time.Since(p.shown) >= time.Second:
		p.shown = time.Now()
		_, _ = fmt.Fprintln(p.out, line)
	}
}

// End clears the line.
func (p *Progress) End() {
	if p.terminal {
		_, _ = fmt.Fprint(p.out, clearLine)
	}
}
