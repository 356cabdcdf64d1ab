package readback_test

import (
	"math/big"
	"reflect"
	"testing"
	"time"

	"github.com/fetchonce/fetchonce/internal/readback"
)

type plain struct {
	ID      int64
	Name    *string
	At      time.Time
	Took    time.Duration
	Tags    map[string][]string
	Nested  struct{ X, Y [2]float64 }
	private chan int               //nolint:unused // a codec skips it
	again   struct{ At time.Time } //nolint:unused // likewise
}

type (
	list    struct{ Next *list }
	forest  map[string]forest
	stamped struct{ time.Time }
)

func TestNeeded(t *testing.T) {
	for _, test := range []struct {
		t    reflect.Type
		want bool
	}{
		{reflect.TypeFor[string](), false},
		{reflect.TypeFor[[]byte](), false},
		{reflect.TypeFor[plain](), false},
		{reflect.TypeFor[*plain](), false},
		{reflect.TypeFor[map[string]*plain](), false},
		{reflect.TypeFor[struct{ A, B plain }](), false}, // twice, and not in itself
		{reflect.TypeFor[any](), true},
		{reflect.TypeFor[error](), true},
		{reflect.TypeFor[map[string]any](), true},
		{reflect.TypeFor[struct{ A []struct{ B any } }](), true},
		{reflect.TypeFor[big.Int](), true},
		{reflect.TypeFor[map[string]*big.Int](), true},
		{reflect.TypeFor[stamped](), true},
		{reflect.TypeFor[list](), true},
		{reflect.TypeFor[forest](), true},
	} {
		if got := readback.Needed(test.t); got != test.want {
			t.Errorf("Needed(%v) = %t; want %t", test.t, got, test.want)
		}
	}
}
