package fetchonce_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each test that docs/reliability.md names is there, and so is each search of the
// models, and each row of the matrix.
func TestReliabilityNamesTestsThatExist(t *testing.T) {
	b, err := os.ReadFile("docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	there := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(source), -1) {
			there[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(page, -1) {
		if !there[m[1]] {
			t.Errorf("there is no %s", m[1])
		}
	}

	searches, err := os.ReadFile("model/check.sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("model ((?:`[a-z-]+`(?:, )?)+)").FindAllStringSubmatch(page, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			if name = strings.Trim(name, "`"); !regexp.MustCompile(`(?m)^\s+` + name + `\s+holds`).Match(searches) {
				t.Errorf("the models have no search %s", name)
			}
		}
	}
	rows := regexp.MustCompile(`(?m)^\| T\d+ \|`).FindAllString(page, -1)
	if len(rows) < 45 {
		t.Errorf("there are %d rows, want at least 45", len(rows))
	}
	for i, row := range rows {
		if want := fmt.Sprintf("| T%d |", i+1); row != want {
			t.Errorf("a row begins with %q, want %q", row, want)
		}
	}
}
