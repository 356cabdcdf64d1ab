package shape

import (
	"reflect"
	"slices"
)

// Names returns the sorted names of the fields of a struct.
func Names(t reflect.Type, rules Rules) (names []string) {
	for _, f := range fieldsOf(t, rules).list {
		names = append(names, f.name)
	}
	slices.Sort(names)
	return names
}
