package failure_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/fetchonce/fetchonce/internal/failure"
	"github.com/fetchonce/fetchonce/internal/flight"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

var errGone, errBusy = errors.New("gone"), errors.New("busy")

// A sentinel that both processes list keeps its identity, and no other does.
func TestSentinelsKeepTheirIdentity(t *testing.T) {
	described := failure.Sentinels{errGone, errBusy}.Describe(fmt.Errorf("shop 3: %w", errGone), false)
	peer := failure.Sentinels{errBusy, errors.New("other"), errGone}.Peer(described)
	if peer.Error() != "shop 3: gone" || !errors.Is(peer, errGone) || errors.Is(peer, errBusy) {
		t.Errorf("the peer's error is %q, gone %v, busy %v", peer, errors.Is(peer, errGone), errors.Is(peer, errBusy))
	}
	if other := (failure.Sentinels{errBusy}).Peer(described); errors.Is(other, errGone) {
		t.Error("a process without the sentinel finds it")
	}
}

func TestDataOfParsersAndStoresDoesNotTravel(t *testing.T) {
	_, parse := strconv.Atoi("secret")
	for name, text := range map[string]string{
		"a parser's error":   failure.Sentinels{}.Describe(fmt.Errorf("shop: %w", parse), false).Text,
		"a Store's error":    failure.Sentinels{}.Describe(errors.New("secret"), true).Text,
		"a Store's panic":    failure.OfPanic("secret", true),
		"another's in a log": failure.Text(parse, false),
	} {
		if strings.Contains(text, "secret") {
			t.Errorf("%s travels as %q", name, text)
		}
	}
}

func TestPanicTravelsWithItsValue(t *testing.T) {
	f := failure.Sentinels{}.Describe(&flight.PanicError{Value: "boom"}, false)
	if f.Class != protocol.FailedPanic || f.Text != "boom" {
		t.Errorf("a panic travels as %+v", f)
	}
}
