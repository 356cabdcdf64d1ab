package drivertest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // as "mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // as "pgx"
	_ "modernc.org/sqlite"             // as "sqlite"

	"github.com/fetchonce/fetchonce/internal/mariadbtest"
	"github.com/fetchonce/fetchonce/internal/pgtest"
	"github.com/fetchonce/fetchonce/oncesql"
)

// A database is an empty database of one test.
type database struct {
	*sql.DB
	dialect     oncesql.Dialect
	driver, dsn string
}

// databases has a function that opens an empty database of each kind.
var databases = map[string]func(t *testing.T) database{
	"Postgres": func(t *testing.T) database {
		t.Helper()
		return newPostgres(t)
	},
	"MariaDB": func(t *testing.T) database {
		t.Helper()
		return newMariaDB(t)
	},
	"SQLite": newSQLite,
}

// newPostgres opens a database with settings as they stand in a DSN, like
// "default_query_exec_mode=exec".
func newPostgres(t *testing.T, settings ...string) database {
	t.Helper()
	return open(t, oncesql.Postgres, "pgx", strings.Join(append([]string{pgtest.Start(t)}, settings...), "&"))
}

// newMariaDB is newPostgres with settings like "tx_isolation='SERIALIZABLE'".
func newMariaDB(t *testing.T, settings ...string) database {
	t.Helper()
	return open(t, oncesql.MySQL, "mysql", mariadbtest.Start(t)+"?"+strings.Join(settings, "&"))
}

// newSQLite opens a new file with a busy_timeout, so concurrent writers wait for each other.
func newSQLite(t *testing.T) database {
	t.Helper()
	file := filepath.Join(t.TempDir(), "test.db")
	return open(t, oncesql.SQLite, "sqlite", "file:"+file+"?_pragma=busy_timeout(30000)&_pragma=journal_mode(wal)")
}

func open(t *testing.T, dialect oncesql.Dialect, driver, dsn string) database {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxIdleConns(32)
	t.Cleanup(func() { _ = db.Close() })
	return database{DB: db, dialect: dialect, driver: driver, dsn: dsn}
}

// again opens the same database, for connections of their own.
func (d database) again(t *testing.T) database {
	t.Helper()
	return open(t, d.dialect, d.driver, d.dsn)
}

// before opens the same database, and calls hook before each statement. An error of hook
// replaces the result of the statement.
func (d database) before(t *testing.T, hook func(statement string) error) database {
	t.Helper()
	db := sql.OpenDB(connector{d: d, hook: hook})
	t.Cleanup(func() { _ = db.Close() })
	d.DB = db
	return d
}

// toMySQL changes a CREATE TABLE of the tests for MySQL: the name "key" is quoted, because it
// is a keyword, and unique columns have a limited length.
var toMySQL = strings.NewReplacer("key text", "`key` varbinary(3072)",
	"slug text", "slug varchar(255)", " text", " longtext CHARACTER SET utf8mb4")

// keyColumn quotes the column key if key is a keyword.
func (d database) keyColumn() string {
	if d.dialect == oncesql.MySQL {
		return "`key`"
	}
	return "key"
}

func (d database) dropIndex(t *testing.T, index, table string) {
	t.Helper()
	if d.dialect == oncesql.MySQL {
		index += " ON " + table
	}
	d.exec(t, "DROP INDEX "+index)
}

// exec runs statements of the test's own.
func (d database) exec(t *testing.T, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if d.dialect == oncesql.MySQL && strings.HasPrefix(s, "CREATE TABLE ") {
			s = toMySQL.Replace(s)
		}
		if _, err := d.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// number returns the result of a query for one number.
func (d database) number(t *testing.T, query string, args ...any) int {
	t.Helper()
	var n int
	if err := d.QueryRow(query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// awaitBlocked returns when n statements in this database, which is not SQLite,
// wait for a lock.
func (d database) awaitBlocked(t *testing.T, n int) {
	t.Helper()
	query := `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
	if d.dialect == oncesql.MySQL {
		query = `SELECT count(*) FROM information_schema.innodb_trx JOIN information_schema.processlist ON id = trx_mysql_thread_id
			WHERE db = DATABASE() AND trx_state = 'LOCK WAIT'`
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		blocked := d.number(t, query)
		if blocked >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d statements wait for a lock, want %d", blocked, n)
		}
		if d.dialect == oncesql.MySQL {
			time.Sleep(150 * time.Millisecond) // asked again within 100 ms, InnoDB gives the same answer
		}
	}
}

// A connector makes connections that call a hook before each statement that is sent, and not
// before one that is prepared.
type connector struct {
	d        database
	hook     func(statement string) error
	prepared func(statement string) // may be nil
}

func (c connector) Driver() driver.Driver { return c.d.Driver() }

func (c connector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.Driver().Open(c.d.dsn)
	if err != nil {
		return nil, err
	}
	return hookedConn{conn, c}, nil
}

type hookedConn struct {
	driver.Conn
	connector connector
}

func (c hookedConn) QueryContext(ctx context.Context, statement string, args []driver.NamedValue) (driver.Rows, error) {
	if c.skips(args) {
		return nil, driver.ErrSkip
	}
	if err := c.connector.hook(statement); err != nil {
		return nil, err
	}
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, statement, args)
}

func (c hookedConn) ExecContext(ctx context.Context, statement string, args []driver.NamedValue) (driver.Result, error) {
	if c.skips(args) {
		return nil, driver.ErrSkip
	}
	if err := c.connector.hook(statement); err != nil {
		return nil, err
	}
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, statement, args)
}

// skips reports whether the driver prepares the statement first. The prepared statement then
// calls the hook.
func (c hookedConn) skips(args []driver.NamedValue) bool {
	return c.connector.d.dialect == oncesql.MySQL && len(args) > 0
}

func (c hookedConn) PrepareContext(ctx context.Context, statement string) (driver.Stmt, error) {
	if c.connector.prepared != nil {
		c.connector.prepared(statement)
	}
	stmt, err := c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, statement)
	if err != nil {
		return nil, err
	}
	return hookedStmt{stmt, statement, c.connector.hook}, nil
}

func (c hookedConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.Conn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

type hookedStmt struct {
	driver.Stmt
	text string
	hook func(statement string) error
}

func (s hookedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.hook(s.text); err != nil {
		return nil, err
	}
	return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
}

func (s hookedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.hook(s.text); err != nil {
		return nil, err
	}
	return s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
}

// A thing is the value of most tests.
type thing struct {
	Name string
	Size int
}

// A form is a way to store a thing in a table.
type form struct {
	name string
	opt  oncesql.Options[thing] // without Dialect and Table
}

var forms = []form{
	{"JSON", oncesql.Options[thing]{}},
	{"binary", oncesql.Options[thing]{Codec: binary{}}},
	{"columns", oncesql.Options[thing]{
		Columns: []string{"name", "size"},
		Values:  func(v thing) []any { return []any{v.Name, v.Size} },
		Scan: func(_ string, scan func(dest ...any) error) (v thing, err error) {
			err = scan(&v.Name, &v.Size)
			return v, err
		},
	}},
}

// A formIn is a form in a kind of database.
type formIn struct {
	name string
	form
	newDatabase func(t *testing.T) database
}

// everyForm has each form in each kind of database.
var everyForm = func() (all []formIn) {
	for name, newDatabase := range databases {
		for _, f := range forms {
			all = append(all, formIn{name + ", " + f.name, f, newDatabase})
		}
	}
	return all
}()

// open returns an empty database with an empty table "things" for f.
func (f formIn) open(t *testing.T) database {
	t.Helper()
	return f.prepare(t, f.newDatabase(t))
}

// prepare makes an empty table "things" for f. It returns d with new connections, because pgx
// keeps what it knows of another form's table of that name.
func (f form) prepare(t *testing.T, d database) database {
	t.Helper()
	d = d.again(t)
	d.exec(t, "DROP TABLE IF EXISTS things")
	if len(f.opt.Columns) > 0 {
		d.exec(t, "CREATE TABLE things (key text NOT NULL PRIMARY KEY, name text NOT NULL, size integer NOT NULL)")
	} else if err := f.store(t, d).CreateTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

// store returns a Store of things in the table of that name.
func (f form) store(t *testing.T, d database) *oncesql.Store[thing] {
	t.Helper()
	opt := f.opt
	opt.Dialect, opt.Table = d.dialect, "things"
	return newStore(t, d, opt)
}

func newStore[V any](t *testing.T, d database, opt oncesql.Options[V]) *oncesql.Store[V] {
	t.Helper()
	opt.Dialect = d.dialect
	s, err := oncesql.New(d.DB, opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// textStore returns a Store of texts as JSON in a table that it makes.
func textStore(t *testing.T, d database, table string) *oncesql.Store[string] {
	t.Helper()
	s := newStore(t, d, oncesql.Options[string]{Table: table})
	if err := s.CreateTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// binary is a codec whose data is not text: a NUL, and then a byte that is invalid in UTF-8.
// The zero thing is encoded as no bytes.
type binary struct{}

func (binary) Marshal(v any) ([]byte, error) {
	if v == any(thing{}) {
		return nil, nil
	}
	data, err := json.Marshal(v)
	return append([]byte{0}, invert(data)...), err
}

func (binary) Unmarshal(data []byte, v any) error {
	if len(data) == 0 {
		return nil
	}
	if data[0] != 0 {
		return errors.New("does not begin with NUL")
	}
	return json.Unmarshal(invert(data[1:]), v)
}

func invert(data []byte) []byte {
	inverted := make([]byte, len(data))
	for i, b := range data {
		inverted[i] = ^b
	}
	return inverted
}

// result is what a Lookup or a Create returned.
type result[V any] struct {
	v   V
	err error
}

func (r result[V]) String() string { return fmt.Sprintf("%v, %v", r.v, r.err) }

// inBackground calls Create on a goroutine, and returns a channel for its result.
func inBackground[V any](ctx context.Context, s *oncesql.Store[V], key string, v V) <-chan result[V] {
	done := make(chan result[V], 1)
	go func() {
		kept, err := s.Create(ctx, key, v)
		done <- result[V]{kept, err}
	}()
	return done
}
