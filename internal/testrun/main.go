// Testrun runs "go test" with its arguments and prints each package when its tests end.
// "go test" itself prints a package only after every package before it in the list, so
// one slow package holds back the results of all others.
//
// For a package that passes, Testrun prints one line. For a package that fails, it prints
// the output of the tests that did not pass, as "go test" does. It only counts packages
// that have no test to run. Its exit status equals the exit status of "go test".
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	// ^C reaches go test too, which is in the same process group.
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		err = errors.Join(newPrinter(os.Stdout, slices.Contains(os.Args, "-v")).run(output), cmd.Wait())
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		os.Exit(1)
	}
}

// An event is a line of "go test -json": see "go doc test2json".
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// A printer prints each package when its tests end.
type printer struct {
	out      io.Writer
	verbose  bool // prints all output at once
	packages map[string]*pkg
	idle     int // packages without a test to run
}

func newPrinter(out io.Writer, verbose bool) *printer {
	return &printer{out: out, verbose: verbose, packages: map[string]*pkg{}}
}

// run prints packages until the events end. It prints build output, and output of go test
// that is not an event, at once.
func (p *printer) run(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if json.Unmarshal(line, &e) != nil {
			_, _ = p.out.Write(line)
		} else {
			p.handle(e)
		}
		if err == nil {
			continue
		}
		for _, unended := range p.packages {
			unended.print(p.out)
		}
		if p.idle > 0 {
			_, _ = fmt.Fprintf(p.out, "no tests to run in %d other packages\n", p.idle)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
}

func (p *printer) handle(e event) {
	of := p.packages[e.Package]
	if of == nil && e.Package != "" {
		of = &pkg{output: map[string][]byte{}}
		p.packages[e.Package] = of
	}
	passed := e.Action == "pass" || e.Action == "skip"
	switch {
	case of == nil || p.verbose && e.Action == "output":
		_, _ = io.WriteString(p.out, e.Output)
	case e.Action == "output":
		of.add(e.Test, e.Output)
	case e.Test != "" && passed:
		delete(of.output, e.Test)
	case e.Test == "" && passed:
		p.printResult(of)
		delete(p.packages, e.Package)
	case e.Test == "" && e.Action == "fail":
		of.print(p.out)
		delete(p.packages, e.Package)
	}
}

// printResult prints the last line of a package that passed, as "ok  	package	0.3s".
func (p *printer) printResult(of *pkg) {
	lines := strings.Split(strings.TrimSpace(string(of.output[""])), "\n")
	last := lines[len(lines)-1]
	switch {
	case strings.HasSuffix(last, "[no tests to run]") || strings.HasSuffix(last, "[no test files]"):
		p.idle++
	case last != "":
		_, _ = fmt.Fprintln(p.out, last)
	}
}

// A pkg is the output of a package so far: the output of the tests that have not passed, in
// the order of their first output, and of the package itself under the name "".
type pkg struct {
	names  []string
	output map[string][]byte
}

func (p *pkg) add(test, text string) {
	if _, ok := p.output[test]; !ok {
		p.names = append(p.names, test)
	}
	p.output[test] = append(p.output[test], text...)
}

// print prints the output of the tests, and then the output of the package itself.
func (p *pkg) print(out io.Writer) {
	for _, name := range p.names {
		if name != "" {
			_, _ = out.Write(p.output[name])
		}
	}
	_, _ = out.Write(p.output[""])
}
