// Package mutant builds programs over the library with a mistake in it.
//
// A mistake replaces one place in the library's source, which may be a Lua script. The go command
// reads the changed file through an overlay, so nothing of a mistake is in the shipped library, not
// even a build tag. The text to be replaced must be in the source exactly once, with any white space.
// Otherwise the build fails, and the mistake must be updated.
package mutant

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// A Mutant is the library with a mistake in it.
type Mutant struct {
	Name     string
	File     string // below the library's root
	Old, New string // the text that is there once, and its replacement
	Profile  string // of the soak that catches it; "" for standalone
	Faults   string // the soak's faults that catch it, by a part of their names; "" for all
	Late     bool   // whether it is caught only at the end of a soak
}

// Apply returns source with the mistake.
func (m Mutant) Apply(source string) (string, error) {
	var words []string
	for word := range strings.FieldsSeq(m.Old) {
		words = append(words, regexp.QuoteMeta(word))
	}
	old, err := regexp.Compile(strings.Join(words, `\s+`))
	if err != nil {
		return "", err
	}
	found := old.FindAllStringIndex(source, -1)
	if len(found) != 1 {
		return "", fmt.Errorf("mutant: %q: %s has %q %d times, not once", m.Name, m.File, m.Old, len(found))
	}
	return source[:found[0][0]] + m.New + source[found[0][1]:], nil
}

// IsScript reports whether the mistake is in a Lua script.
func (m Mutant) IsScript() bool { return strings.HasSuffix(m.File, ".lua") }

// A Source is the text of a file without and with a mistake.
type Source struct{ Original, Mutated string }

// Read reads the file of the mistake in root.
func (m Mutant) Read(root string) (Source, error) {
	b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(m.File)))
	if err != nil {
		return Source{}, err
	}
	mutated, err := m.Apply(string(b))
	return Source{string(b), mutated}, err
}

// Build runs a go command, such as "build" or "test" with flags, over the library in root with the
// mistake. It writes the result to output and its temporary files to dir.
func (m Mutant) Build(root, dir, output string, goCommand ...string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	source, err := m.Read(root)
	if err != nil {
		return err
	}
	replacement, overlay := filepath.Join(dir, "mutated"), filepath.Join(dir, "overlay")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, filepath.FromSlash(m.File)): replacement}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(replacement, []byte(source.Mutated), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return err
	}
	cmd := exec.Command("go", append(goCommand, "-overlay", overlay, "-o", output, ".")...)
	cmd.Dir = filepath.Join(root, "chaos")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mutant: %q: %w\n%s", m.Name, err, output)
	}
	return nil
}
