package drivertest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/oncesql"
)

// A keyed codec writes the key before the value, and reads no value of another key.
type keyed struct{}

var errOtherKey = errors.New("the value of another key")

func (keyed) Marshal(any) ([]byte, error) { return nil, errors.New("no key") }

func (keyed) Unmarshal([]byte, any) error { return errors.New("no key") }

func (keyed) MarshalKey(key string, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	return append([]byte(key+"\x00"), data...), err
}

func (keyed) UnmarshalKey(key string, data []byte, v any) error {
	data, ok := bytes.CutPrefix(data, []byte(key+"\x00"))
	if !ok {
		return errOtherKey
	}
	return json.Unmarshal(data, v)
}

// A KeyCodec receives the requested key. It does not read a row that was moved to another
// key.
func TestKeyCodecReceivesTheKey(t *testing.T) {
	for name, newDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t)
			s := newStore(t, d, oncesql.Options[string]{Table: "sealed", Key: "id", Value: "body", Codec: keyed{}})
			if err := s.CreateTable(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Create(t.Context(), "alice", "of alice"); got != "of alice" || err != nil {
				t.Errorf("Create = %q, %v; want what was created", got, err)
			}
			if got, err := s.LookupMany(t.Context(), []string{"alice", "nobody"}); got["alice"] != "of alice" || err != nil {
				t.Errorf("LookupMany = %v, %v; want the value of alice", got, err)
			}
			d.exec(t, "UPDATE sealed SET id = 'mallory' WHERE id = 'alice'")
			if got, err := s.Lookup(t.Context(), "mallory"); got != "" || !errors.Is(err, errOtherKey) {
				t.Errorf("Lookup of a row that was moved = %q, %v; want an error", got, err)
			}
			_, err := oncesql.New(d.DB, oncesql.Options[string]{Dialect: d.dialect, Table: "sealed", Codec: keyed{}, FoldKeys: true})
			if err == nil || !strings.Contains(err.Error(), "FoldKeys") {
				t.Errorf("New with FoldKeys = %v; want an error that names it", err)
			}
		})
	}
}
