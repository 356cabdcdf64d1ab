//go:build linux

package main

import (
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

// mutantLasts is how long a mutant has to be caught.
const mutantLasts = 20 * time.Second

// mutantsAtOnce is how many are hunted at the same time.
const mutantsAtOnce = 3

// catch has each mutant soaked whose name has only in it, and prints by which
// invariant it was caught. It returns an error if one was not.
func catch(root, only string) error {
	dir, err := os.MkdirTemp("", "chaos-mutants")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var (
		all  sync.WaitGroup
		next = make(chan int)
		some = slices.DeleteFunc(slices.Clone(mutant.Soaked), func(m mutant.Mutant) bool { return !strings.Contains(m.Name, only) })
		errs = make([]error, len(some))
	)
	for range mutantsAtOnce {
		all.Go(func() {
			for i := range next {
				place := filepath.Join(dir, fmt.Sprint(i))
				began := time.Now()
				by, err := soak(some[i], root, place)
				errs[i] = err
				if err != nil {
					by = []string{"NOT CAUGHT"}
				}
				fmt.Printf("%-80s %5.1f s  %s\n", some[i].Name, time.Since(began).Seconds(), strings.Join(by, "; "))
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

// violations finds the lines of a report that blame.
var violations = regexp.MustCompile(`(?m)^ *([1-9]\d*) violations, .* excused  (.*)$`)

// soak returns by which invariants a mutant is caught.
func soak(m mutant.Mutant, root, dir string) (by []string, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	program := filepath.Join(dir, "chaos")
	if err := m.Build(root, dir, program, "build", "-ldflags=-s -w"); err != nil {
		return nil, err
	}
	said, err := exec.Command(program, "-seed", "1", "-duration", mutantLasts.String(), "-only", m.Faults, "-hasty", "-dir", filepath.Join(dir, "run")).CombinedOutput()
	for _, line := range violations.FindAllStringSubmatch(string(said), -1) {
		kind, _, _ := strings.Cut(line[2], ":")
		by = append(by, line[1]+" times "+kind)
	}
	if len(by) == 0 {
		return nil, fmt.Errorf("%q was not caught: %w\n%s", m.Name, errors.Join(err, errors.New("no violation")), said)
	}
	return by, nil
}
