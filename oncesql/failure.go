package oncesql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"
)

// attempts limits how often a statement is sent, and how often Create inserts a row that it
// does not find then. With the pauses this takes about a second.
const attempts = 10

// The pause before a repetition doubles from firstPause to longestPause.
const (
	firstPause   = 5 * time.Millisecond
	longestPause = 250 * time.Millisecond
)

// repeat calls do again after a pause while its error may pass. It returns the last error.
func repeat(ctx context.Context, do func() error) error {
	err := do()
	for attempt := 1; attempt < attempts && passes(err) && pause(ctx, attempt); attempt++ {
		err = do()
	}
	return err
}

// pause waits before the next attempt. It returns false if ctx has ended.
func pause(ctx context.Context, attempt int) bool {
	length := min(firstPause<<(attempt-1), longestPause)
	timer := time.NewTimer(length/2 + rand.N(length/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// passes reports whether the error of a statement may pass, so that it succeeds if it is sent
// again: the connection was lost, another transaction was in the way, or the table has
// changed since the statement was planned. All statements of a Store are safe to repeat.
// err may be nil.
func passes(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	return isLost(err) || slices.Contains(passingStates, sqlState(err)) || slices.Contains(passingNumbers, errorNumber(err)) ||
		slices.Contains(passingCodes, sqliteCode(err))
}

var passingStates = []string{
	"0A000", // feature_not_supported: cached plan must not change result type
	"26000", // invalid_sql_statement_name: a prepared statement is gone
	"40001", // serialization_failure
	"40P01", // deadlock_detected
	"55P03", // lock_not_available: lock_timeout
}

var passingNumbers = []uint16{
	1020, // record has changed since last read
	1205, // lock wait timeout: the context says how long to wait
	1213, // deadlock
	1243, // unknown prepared statement
	1412, // table definition has changed
	1615, // prepared statement needs to be prepared again
}

var passingCodes = []int{
	5, // SQLITE_BUSY: another connection writes
	6, // SQLITE_LOCKED: another connection with the same cache writes
}

// lostNumbers are the errors with which MySQL and MariaDB end a connection: shutdown,
// killed, and idle for too long.
var lostNumbers = []uint16{1053, 1927, 4031}

// isLost reports whether err says that the connection was lost or could not be made.
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
	return strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P") ||
		slices.Contains(lostNumbers, errorNumber(err)) || isInvalidConn(err)
}

// isInvalidConn reports whether err is ErrInvalidConn of github.com/go-sql-driver/mysql: the
// statement's connection was lost. The error has neither a number nor a type of its own.
func isInvalidConn(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if err.Error() == "invalid connection" {
			return true
		}
	}
	return false
}

// isCommon reports whether err concerns all keys: it may pass, or its SQLSTATE is of a class
// that does not concern data. An error without a SQLSTATE may concern one key.
func isCommon(err error) bool {
	if passes(err) {
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
