package model_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// quote matches the comment by which a model quotes a line of a script or a Go file.
var quote = regexp.MustCompile(`/\* ([\w/]+\.(?:lua|go)): (.*?) \*/`)

// writes matches the commands of a script that change data, and its notifications.
var writes = regexp.MustCompile(`"(SET|SETRANGE|DEL|UNLINK|RENAME|PEXPIRE|HSET|HDEL|ZADD|ZREM|PUBLISH)"|\bnotify\(`)

// The models must follow the scripts. Each line that a model quotes still exists. Each line that
// writes to Redis is quoted by a model, or listed in README.md.
func TestModelsQuoteTheLinesOfTheScripts(t *testing.T) {
	quoted := quotes(t)
	for file, lines := range quoted {
		text := read(t, filepath.Join("..", file))
		for _, line := range lines {
			if !strings.Contains(text, line) {
				t.Errorf("%s does not have %q any more: does the model still hold?", file, line)
			}
		}
	}
	scripts, err := filepath.Glob("../internal/protocol/*.lua")
	if err != nil || len(scripts) == 0 {
		t.Fatal("there are no scripts:", err)
	}
	readme := read(t, "README.md")
	for _, script := range scripts {
		file := strings.TrimPrefix(filepath.ToSlash(script), "../")
		for line := range strings.Lines(read(t, script)) {
			line = strings.TrimSpace(line)
			if !writes.MatchString(line) || strings.HasPrefix(line, "--") || strings.Contains(readme, line) {
				continue
			}
			if !isQuoted(line, quoted[file]) {
				t.Errorf("%s has a line that writes and that no model quotes: %s", file, line)
			}
		}
	}
}

// quotes returns the quoted lines by file.
func quotes(t *testing.T) map[string][]string {
	t.Helper()
	models, err := filepath.Glob("*.pml")
	if err != nil || len(models) == 0 {
		t.Fatal("there are no models:", err)
	}
	quoted := make(map[string][]string)
	for _, model := range models {
		for _, q := range quote.FindAllStringSubmatch(read(t, model), -1) {
			file := q[1]
			if strings.HasSuffix(file, ".lua") {
				file = "internal/protocol/" + file
			}
			quoted[file] = append(quoted[file], q[2])
		}
	}
	return quoted
}

func isQuoted(line string, quotes []string) bool {
	for _, q := range quotes {
		if strings.Contains(line, q) {
			return true
		}
	}
	return false
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
