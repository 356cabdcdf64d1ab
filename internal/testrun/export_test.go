package main

import "io"

// Print prints each package of events when its tests end.
func Print(out io.Writer, events io.Reader) error { return newPrinter(out, false).run(events) }
