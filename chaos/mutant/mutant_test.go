package mutant_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/fetchonce/fetchonce/chaos/mutant"
)

// Each mistake can still be made in the source. A mutant without its mistake would test nothing.
func TestEveryMistakeAppliesToTheSource(t *testing.T) {
	for _, m := range mutant.Soaked {
		source, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(m.File)))
		if err != nil {
			t.Fatal(err)
		}
		mutated, err := m.Apply(string(source))
		if err != nil {
			t.Error(err)
		} else if mutated == string(source) {
			t.Errorf("%q changes nothing", m.Name)
		}
	}
	if _, err := (mutant.Mutant{Old: "text that is not there"}).Apply("func"); err == nil {
		t.Error("Apply = nil for a text that is not in the source, want an error")
	}
}
