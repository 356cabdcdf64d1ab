package oncesql

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
)

// isLost reports whether err says that there is no connection to the server any
// more, or that none could be made.
func isLost(err error) bool {
	for _, lost := range []error{driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, lost) {
			return true
		}
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	state := sqlState(err)
	return strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P")
}

// isCommon reports whether err is about all keys alike: a connection that is
// lost, or an error whose SQLSTATE is not of a class that is about data. What has
// no SQLSTATE may be about one key.
func isCommon(err error) bool {
	if isLost(err) {
		return true
	}
	switch state := sqlState(err); state {
	case "", "42804", "42883": // a type that does not match, or no operator for it
		return false
	default:
		// 21: cardinality, 22: data, 54: limits of the server.
		return !strings.HasPrefix(state, "21") && !strings.HasPrefix(state, "22") && !strings.HasPrefix(state, "54")
	}
}
