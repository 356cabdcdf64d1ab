// Package mutant builds programs over the library with a mistake in it.
//
// A mistake is a replacement in the library's own source, a Lua script too, which
// the go command is shown as an overlay. So nothing of it is in what is shipped, no
// build tag either, and a mistake costs a build and a few lines. What is to be
// replaced must stand in the source exactly once, whatever its spaces: else the
// build fails, and the mistake has to be looked at again.
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
	Old, New string // what stands there once, and what in its place
	Profile  string // of the soak that finds it out; "" for standalone
	Faults   string // which of a soak's faults find it out; "" for whichever
	Late     bool   // it is found out only when all is over
}

// Apply returns a source with the mistake.
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

// Read returns the source in root, and what it is with the mistake.
func (m Mutant) Read(root string) (source, mutated string, err error) {
	b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(m.File)))
	if err != nil {
		return "", "", err
	}
	mutated, err = m.Apply(string(b))
	return string(b), mutated, err
}

// Build runs the go command, such as "build" or "test" with flags, over the
// library in root with the mistake, and puts what it makes into output. The
// files it needs for that go into dir.
func (m Mutant) Build(root, dir, output string, goCommand ...string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	_, mutated, err := m.Read(root)
	if err != nil {
		return err
	}
	replacement, overlay := filepath.Join(dir, "mutated"), filepath.Join(dir, "overlay")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, filepath.FromSlash(m.File)): replacement}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(replacement, []byte(mutated), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return err
	}
	cmd := exec.Command("go", append(goCommand, "-overlay", overlay, "-o", output, ".")...)
	cmd.Dir = filepath.Join(root, "chaos")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mutant: %q: %w\n%s", m.Name, err, said)
	}
	return nil
}
