package fetchonce_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// TestReliabilityNamesTestsThatExist checks that each test and each search of the models
// that docs/reliability.md names exists, and that its rows are numbered without a gap.
func TestReliabilityNamesTestsThatExist(t *testing.T) {
	page := readText(t, "docs/reliability.md") + readText(t, "docs/internals/soak.md")
	there := declaredTests(t)
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(page, -1) {
		if !there[m[1]] {
			t.Errorf("there is no %s", m[1])
		}
	}

	searches := readText(t, "model/check.sh")
	for _, m := range regexp.MustCompile("model ((?:`[a-z-]+`(?:, )?)+)").FindAllStringSubmatch(page, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			if name = strings.Trim(name, "`"); !regexp.MustCompile(`(?m)^\s+` + name + `\s+holds`).MatchString(searches) {
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
