package mutant_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/fetchonce/fetchonce/chaos/mutant"
)

// A mutant whose mistake cannot be made any more, because the source has changed,
// would catch nobody.
func TestMutantsApply(t *testing.T) {
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
	if _, err := (mutant.Mutant{Old: "what is not there"}).Apply("func"); err == nil {
		t.Error("a mistake was made where there was no place for it")
	}
}
