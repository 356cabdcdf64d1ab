//go:build linux

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/chaos/mutant"
)

// mutantLasts is how long a mutant is soaked, and lateLasts how long one that is caught at the end.
const (
	mutantLasts = 20 * time.Second
	lateLasts   = 5 * time.Second
)

// mutantsAtOnce is how many are built, and then soaked, at the same time. More would starve each
// other, and a worker that does not run excuses many violations.
const mutantsAtOnce = 2

// catch soaks each mutant whose name contains only, and prints the invariants that caught it. It
// returns an error if one was not caught.
func catch(root, only string) error {
	dir, err := os.MkdirTemp("", "chaos-mutants")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	some := slices.DeleteFunc(slices.Clone(mutant.Soaked), func(m mutant.Mutant) bool { return !strings.Contains(m.Name, only) })
	began := time.Now()
	err = each(some, func(i int, m mutant.Mutant) error { return build(m, root, filepath.Join(dir, fmt.Sprint(i))) })
	if err != nil {
		return err
	}
	fmt.Printf("%d mutants built in %.1f s\n", len(some), time.Since(began).Seconds())
	err = each(some, func(i int, m mutant.Mutant) error {
		began := time.Now()
		by, err := soak(m, root, filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			by = []string{"NOT CAUGHT"}
		}
		fmt.Printf("%-80s %5.1f s  %s\n", m.Name, time.Since(began).Seconds(), strings.Join(by, "; "))
		return err
	})
	fmt.Printf("all in %.1f s\n", time.Since(began).Seconds())
	return err
}

// each calls do for each mutant, for mutantsAtOnce at the same time.
func each(some []mutant.Mutant, do func(i int, m mutant.Mutant) error) error {
	var all sync.WaitGroup
	next := make(chan int)
	errs := make([]error, len(some))
	for range mutantsAtOnce {
		all.Go(func() {
			for i := range next {
				errs[i] = do(i, some[i])
			}
		})
	}
	for i := range some {
		next <- i
	}
	close(next)
	all.Wait()
	return errors.Join(errs...)
}

// build builds the program of a mutant in dir. A mutant of a script needs none: the workers replace
// the script when they send it. Without optimization and DWARF, a build takes less than half the time.
func build(m mutant.Mutant, root, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if m.IsScript() {
		return nil
	}
	return m.Build(root, dir, filepath.Join(dir, "chaos"), "build", "-gcflags=-N -l -dwarf=false", "-ldflags=-s -w")
}

// program returns the command that runs a mutant, which was built in dir.
func program(m mutant.Mutant, root, dir string, args ...string) (*exec.Cmd, error) {
	if !m.IsScript() {
		return exec.Command(filepath.Join(dir, "chaos"), args...), nil
	}
	source, err := m.Read(root)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(swap{Old: source.Original, New: source.Mutated})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), swapVariable+"="+string(text))
	return cmd, nil
}

// violations matches the lines of a report with violations.
var violations = regexp.MustCompile(`(?m)^ *([1-9]\d*) violations, .* excused  (.*)$`)

// soak returns the invariants that catch a mutant, which was built in dir.
func soak(m mutant.Mutant, root, dir string) (by []string, err error) {
	lasts := mutantLasts
	if m.Late {
		lasts = lateLasts
	}
	cmd, err := program(m, root, dir, "-profile", cmp.Or(m.Profile, "standalone"), "-seed", "1", "-duration", lasts.String(), "-only", m.Faults, "-hasty", "-dir", filepath.Join(dir, "run"))
	if err != nil {
		return nil, err
	}
	output, err := cmd.CombinedOutput()
	for _, line := range violations.FindAllStringSubmatch(string(output), -1) {
		kind, _, _ := strings.Cut(line[2], ":")
		by = append(by, line[1]+" times "+kind)
	}
	if len(by) == 0 {
		return nil, fmt.Errorf("%q was not caught: %w\n%s", m.Name, errors.Join(err, errors.New("no violation")), output)
	}
	return by, nil
}
