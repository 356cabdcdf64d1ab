package drivertest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/oncesql"
)

const (
	conformWorkers = 8
	callsOfOneKey  = 12 // in succession, so that workers meet at it

	// shortestRepeat is less than a Store's pauses between ten attempts.
	shortestRepeat = 500 * time.Millisecond
)

// Each driver is under load while another program changes the table, locks rows that the
// Store needs, and deadlocks with it, and while the server restarts. No call returns an
// error that a repetition would have avoided. All calls of a key return the value of its
// only row.
func TestEachDriverConforms(t *testing.T) {
	_ = mysql.SetLogger(&mysql.NopLogger{}) // it logs each connection that the restart ends
	for i, driver := range conforming(t) {
		t.Run(driver.name, func(t *testing.T) {
			c := &conformance{t: t, driver: driver, kept: make(map[string]string)}
			c.database, c.other = driver.open(t, fmt.Sprintf("conform%d", i))
			c.store = slugStore(t, c.database)
			var workers sync.WaitGroup
			for range conformWorkers {
				workers.Go(c.work)
			}
			workers.Wait()
			c.checkRows()
			t.Logf("%d calls; excused errors: %d; the other program: %d changes of the table, %d of its statements failed",
				driver.server.calls, c.excused.Load(), c.alters, c.otherErrors.Load())
		})
	}
}

// A conformance is the run of one driver.
type conformance struct {
	database
	other  database // connections of the other program
	t      *testing.T
	driver conformingDriver
	store  *oncesql.Store[string]

	calls       atomic.Int64
	restarts    atomic.Int64 // odd while the server restarts
	excused     atomic.Int64
	otherErrors atomic.Int64

	altering sync.Mutex
	alters   int

	mu   sync.Mutex
	kept map[string]string // the value that the first call of a key returned
}

// work makes calls until all workers together have made all calls of the run.
func (c *conformance) work() {
	for {
		n := int(c.calls.Add(1))
		if n > c.driver.server.calls {
			return
		}
		at, turn := n/callsOfOneKey, n%callsOfOneKey
		key := keyNumber(at)
		switch {
		case n == c.driver.server.calls/2:
			c.restart()
		case turn == 3 && at%4 == 0:
			c.alter()
		case turn < 6:
			mine := fmt.Sprintf("%s by %d", key, turn%3)
			c.call(key, func(ctx context.Context) (string, error) { return c.store.Create(ctx, key, mine) })
		case turn < 8:
			c.call(key, func(ctx context.Context) (string, error) { return c.store.Lookup(ctx, key) })
		case turn < 10:
			c.lookupMany(at)
		default:
			c.intrude(key, keyNumber(at+1))
		}
	}
}

func keyNumber(i int) string { return fmt.Sprintf("key %d", i) }

// lookupMany looks up the key of a number and some before it.
func (c *conformance) lookupMany(last int) {
	var keys []string
	for i := max(0, last-5); i <= last; i++ {
		keys = append(keys, keyNumber(i))
	}
	known := c.known(keys...)
	var found map[string]string
	err := c.errorOf(func(ctx context.Context) (err error) {
		found, err = c.store.LookupMany(ctx, keys)
		return err
	})
	if err != nil {
		return
	}
	for i, key := range keys {
		if v, ok := found[key]; ok {
			c.note(key, v)
		} else if known[i] != "" {
			c.t.Errorf("LookupMany does not find %s; a call returned %q before", key, known[i])
		}
	}
}

// call makes a call of one key.
func (c *conformance) call(key string, do func(ctx context.Context) (string, error)) {
	known := c.known(key)
	var v string
	err := c.errorOf(func(ctx context.Context) (err error) {
		v, err = do(ctx)
		return err
	})
	switch {
	case err == nil:
		c.note(key, v)
	case errors.Is(err, fetchonce.ErrNotFound) && known[0] != "":
		c.t.Errorf("Lookup does not find %s; a call returned %q before", key, known[0])
	}
}

// errorOf returns the error of a call, and fails the test if a repetition would have avoided
// it. It excuses the error of a server that was down, or of a lock of another program, if
// the Store repeated its statement for the full time.
func (c *conformance) errorOf(do func(ctx context.Context) error) error {
	start, before := time.Now(), c.restarts.Load()
	err := do(c.t.Context())
	if err == nil || errors.Is(err, fetchonce.ErrNotFound) {
		return err
	}
	down := before%2 == 1 || c.restarts.Load() != before
	held := strings.Contains(err.Error(), "lock timeout") || strings.Contains(err.Error(), "locked")
	if took := time.Since(start); took < shortestRepeat || !down && !held {
		c.t.Errorf("an error after %v (server restarts: %t): %T %v", took, down, err, err)
		return err
	}
	c.excused.Add(1)
	return err
}

// known returns the values that calls of keys have returned, or "".
func (c *conformance) known(keys ...string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := make([]string, len(keys))
	for i, key := range keys {
		known[i] = c.kept[key]
	}
	return known
}

// note compares a value with the key, and with those of other calls.
func (c *conformance) note(key, v string) {
	c.mu.Lock()
	first, ok := c.kept[key]
	if !ok {
		c.kept[key] = v
	}
	c.mu.Unlock()
	if ok && first != v {
		c.t.Errorf("calls of %s returned %q and %q", key, first, v)
	}
	if !strings.HasPrefix(v, key+" by ") {
		c.t.Errorf("a call of %s returned %q, which is another key's", key, v)
	}
}

func (c *conformance) restart() {
	server := c.driver.server.running
	if server == nil {
		return // SQLite
	}
	c.restarts.Add(1)
	defer c.restarts.Add(1)
	if err := server.Restart(); err != nil {
		c.t.Error(err)
	}
}

// alter changes the table, in the other program, unless it is about to.
func (c *conformance) alter() {
	if !c.altering.TryLock() {
		return
	}
	defer c.altering.Unlock()
	statement := c.driver.alter[c.alters%len(c.driver.alter)]
	if _, err := c.other.Exec(statement); err != nil {
		c.otherErrors.Add(1)
		return
	}
	c.alters++
}

// intrude inserts rows that the Store inserts too, in another order, in a
// transaction of the other program, which rolls back.
func (c *conformance) intrude(key, next string) {
	tx, err := c.other.Begin()
	if err != nil {
		c.otherErrors.Add(1)
		return
	}
	defer func() { _ = tx.Rollback() }()
	insert := "INSERT INTO pages (" + c.keyColumn() + ", slug) VALUES "
	for _, row := range []string{
		fmt.Sprintf("('x %s', '%[1]s by 0')", next),
		fmt.Sprintf("('%s', 'x %[1]s')", next),
		fmt.Sprintf("('x %s', '%[1]s by 1')", key),
	} {
		if _, err := tx.Exec(insert + row); err != nil {
			c.otherErrors.Add(1)
			return
		}
	}
}

// checkRows compares the rows with the values that calls returned.
func (c *conformance) checkRows() {
	rows, err := c.Query("SELECT " + c.keyColumn() + ", slug FROM pages")
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	found := make(map[string]string)
	for rows.Next() {
		var key, v string
		if err := rows.Scan(&key, &v); err != nil {
			c.t.Fatal(err)
		}
		if _, ok := found[key]; ok {
			c.t.Errorf("%s has two rows", key)
		}
		found[key] = v
	}
	if err := rows.Err(); err != nil {
		c.t.Fatal(err)
	}
	for key, v := range c.kept {
		if found[key] != v {
			c.t.Errorf("the row of %s has %q; calls returned %q", key, found[key], v)
		}
	}
	if keys := c.driver.server.calls / callsOfOneKey; len(found) < keys-int(c.excused.Load()) {
		c.t.Errorf("%d rows; want one for each of %d keys", len(found), keys)
	}
}
