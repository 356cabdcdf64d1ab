package harness

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// A Table collects rows of cells and prints them in columns.
type Table struct {
	rows  [][]string
	right []bool // whether a column is aligned to the right
}

// Add adds a row. The first is the header. Columns whose last cell is no string are
// aligned to the right.
func (t *Table) Add(cells ...any) {
	row := make([]string, len(cells))
	t.right = make([]bool, len(cells))
	for i, cell := range cells {
		_, text := cell.(string)
		row[i], t.right[i] = fmt.Sprint(cell), !text
	}
	t.rows = append(t.rows, row)
}

// Print prints the table and an empty line.
func (t *Table) Print(out io.Writer) {
	widths := make([]int, len(t.right))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			width := -widths[i] // to the left
			if t.right[i] {
				width = widths[i]
			}
			fmt.Fprintf(&line, "%*s  ", width, cell)
		}
		_, _ = fmt.Fprintln(out, strings.TrimRight(line.String(), " "))
	}
	_, _ = fmt.Fprintln(out)
}

// Quantile returns the wait that a share of all waits did not exceed, in milliseconds.
// It sorts waits.
func Quantile(waits []time.Duration, share float64) time.Duration {
	if len(waits) == 0 {
		return 0
	}
	slices.Sort(waits)
	i := min(int(share*float64(len(waits))), len(waits)-1)
	return waits[i].Round(time.Millisecond)
}
