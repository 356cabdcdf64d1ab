package model_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// quote is how a model quotes a line of a script or of a Go file.
var quote = regexp.MustCompile(`/\* ([\w/]+\.(?:lua|go)): (.*?) \*/`)

// writes finds the commands of a script that change something, and its notifications.
var writes = regexp.MustCompile(`"(SET|SETRANGE|DEL|UNLINK|RENAME|PEXPIRE|HSET|HDEL|ZADD|ZREM|PUBLISH)"|\bnotify\(`)

// TestModelsQuoteWhatIsThere says that the models are of the scripts as they are:
// whatever line a model quotes is still there, and no line that changes something
// in Redis is left out, unless README.md says so.
func TestModelsQuoteWhatIsThere(t *testing.T) {
	quoted := quotes(t)
	for file, lines := range quoted {
		text := read(t, filepath.Join("..", file))
		for _, line := range lines {
			if !strings.Contains(text, line) {
				t.Errorf("%s has no %q any more: does the model still hold?", file, line)
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
				t.Errorf("%s changes something that no model knows: %s", file, line)
			}
		}
	}
}

// quotes returns what the models quote, by file.
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
