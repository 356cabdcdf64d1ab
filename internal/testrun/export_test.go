package main

import "io"

// Print prints the packages of events as they end.
func Print(out io.Writer, events io.Reader) error { return newPrinter(out, false).run(events) }
