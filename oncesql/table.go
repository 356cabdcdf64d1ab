package oncesql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// checkEvery is how often the table is checked: an index may be dropped.
const checkEvery = 10 * time.Second

// A guard checks that the table has one row for each key, before any lookup or insert. So a
// Loader fetches no value that cannot be kept.
type guard struct {
	db      *sql.DB
	dialect dialect
	table   string
	key     string // the name of the column
	fold    bool   // keys that the column compares as equal are one key

	passed atomic.Pointer[checked]
}

// A checked is the result of the last check.
type checked struct {
	at      time.Time
	longest int64 // the length of the longest key; 0 for no limit
	inBytes bool  // longest counts bytes, not characters
}

// A keyColumn describes the column of keys.
type keyColumn struct {
	exists  bool
	kind    string // its type
	unique  bool   // it has a unique index of its own, over all rows and the whole column
	folds   bool   // it may compare different keys as equal
	longest int64
	inBytes bool
}

// check returns an error if two keys could share a row, or a key could have several. It
// queries the database at most once in ten seconds.
func (g *guard) check(ctx context.Context) (*checked, error) {
	last := g.passed.Load()
	if last != nil && time.Since(last.at) < checkEvery {
		return last, nil
	}
	if last != nil {
		again := *last
		again.at = time.Now()
		if !g.passed.CompareAndSwap(last, &again) {
			return last, nil // another caller checks
		}
	}
	var column keyColumn
	err := repeat(ctx, func() (err error) {
		column, err = g.dialect.inspect(ctx, g.db, g.dialect, g.table, g.key)
		return err
	})
	if err == nil && !column.exists {
		g.passed.Store(nil)
		return &checked{}, nil // no such table or column: the statement says so
	}
	if err == nil {
		err = g.judge(column)
	}
	if err != nil {
		g.passed.Store(nil)
		return nil, err
	}
	found := &checked{at: time.Now(), longest: column.longest, inBytes: column.inBytes}
	g.passed.Store(found)
	return found, nil
}

// judge returns an error if the column is unsuitable.
func (g *guard) judge(c keyColumn) error {
	switch {
	case !c.unique:
		return fmt.Errorf("oncesql: table %q: the column %q has no unique index of its own, so a key could get several rows", g.table, g.key)
	case c.folds && !g.fold:
		return fmt.Errorf("oncesql: table %q: the column %q, of type %s, compares different keys as equal; see Options.FoldKeys", g.table, g.key, c.kind)
	}
	return nil
}

// fits returns an error if the column would cut or refuse key.
func (c *checked) fits(key string) error {
	length := int64(len(key))
	if c.longest == 0 || length <= c.longest {
		return nil
	}
	if !c.inBytes {
		if length = int64(utf8.RuneCountInString(key)); length <= c.longest {
			return nil
		}
	}
	return fmt.Errorf("oncesql: a key of length %d is longer than its column, %d", length, c.longest)
}

// checkKey checks the table and one key.
func (g *guard) checkKey(ctx context.Context, key string) error {
	c, err := g.check(ctx)
	if err != nil {
		return err
	}
	return c.fits(key)
}

// literal quotes a text as an SQL string.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// checkMark begins each statement of a check.
const checkMark = "/* oncesql: check of the table */ "

// inspectPostgres describes the column of keys.
func inspectPostgres(ctx context.Context, db *sql.DB, d dialect, table, key string) (c keyColumn, err error) {
	var (
		relation      string
		deterministic bool
		modifier      int64
	)
	err = db.QueryRowContext(ctx, checkMark+`SELECT c.relkind::text, t.typname::text, a.atttypmod, coalesce(to_jsonb(o)->>'collisdeterministic', 'true') = 'true', EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indkey[0] = a.attnum AND coalesce((to_jsonb(i)->>'indnkeyatts')::int, i.indnatts) = 1) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $2 AND NOT a.attisdropped JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation o ON o.oid = a.attcollation WHERE c.oid = to_regclass($1)`,
		d.quoteTable(table), key).Scan(&relation, &c.kind, &modifier, &deterministic, &c.unique)
	if err != nil {
		return c, noRow(err)
	}
	c.exists = true
	c.unique = c.unique || relation != "r" && relation != "p" // a view has no indexes
	switch c.kind {
	case "text", "bytea":
	case "varchar":
		c.longest = max(modifier-4, 0)
	default:
		c.folds = true
	}
	c.folds = c.folds || !deterministic
	return c, nil
}

func noRow(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// inspectMySQL describes the column of keys. It also refuses a session that would cut values
// or keep no row.
func inspectMySQL(ctx context.Context, db *sql.DB, d dialect, table, key string) (c keyColumn, err error) {
	schema, name, ok := strings.Cut(table, ".")
	inSchema := any(schema)
	if !ok {
		name, inSchema = table, nil
	}
	var (
		chars, octets sql.NullInt64
		collation     sql.NullString
		mode          string
		commits       bool
	)
	err = db.QueryRowContext(ctx, checkMark+"SELECT DATA_TYPE, CHARACTER_MAXIMUM_LENGTH, CHARACTER_OCTET_LENGTH, COLLATION_NAME, @@sql_mode, @@autocommit FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ? AND COLUMN_NAME = ?",
		inSchema, name, key).Scan(&c.kind, &chars, &octets, &collation, &mode, &commits)
	switch {
	case errors.Is(err, sql.ErrNoRows): // only the indexes can be checked
		c.exists = true
		c.unique, err = mysqlUnique(ctx, db, d, table, key)
		return c, err
	case err != nil:
		return c, err
	case !strings.Contains(mode, "STRICT_TRANS_TABLES") && !strings.Contains(mode, "STRICT_ALL_TABLES"):
		return c, errors.New("oncesql: sql_mode has neither STRICT_TRANS_TABLES nor STRICT_ALL_TABLES, so the server would cut keys and values that are too long")
	case !commits:
		return c, errors.New("oncesql: autocommit is off, so rows would not be kept")
	}
	switch {
	case strings.HasPrefix(c.kind, "var"), strings.HasSuffix(c.kind, "text"), strings.HasSuffix(c.kind, "blob"):
		c.folds = collation.Valid && !strings.HasSuffix(collation.String, "_bin") && collation.String != "binary"
	default:
		c.folds = true
	}
	c.exists = true
	c.longest, c.inBytes = chars.Int64, !collation.Valid
	if c.inBytes {
		c.longest = octets.Int64
	}
	c.unique, err = mysqlUnique(ctx, db, d, table, key)
	return c, err
}

// mysqlUnique reports whether there is a unique index over the whole key column alone.
func mysqlUnique(ctx context.Context, db *sql.DB, d dialect, table, key string) (bool, error) {
	rows, err := db.QueryContext(ctx, d.indexes(table))
	if err != nil {
		return false, err
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		return false, err
	}
	if len(columns) < 8 {
		return false, fmt.Errorf("oncesql: %s: %d columns", d.indexes(table), len(columns))
	}
	var (
		notUnique bool
		index     string
		column    sql.NullString // NULL for an expression
		part      sql.NullInt64  // the length of an indexed prefix
		dest      = make([]any, len(columns))
		candidate = make(map[string]bool) // the indexes, and whether each is suitable
	)
	for i := range dest {
		dest[i] = skipped{}
	}
	dest[1], dest[2], dest[4], dest[7] = &notUnique, &index, &column, &part
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return false, err
		}
		_, second := candidate[index]
		candidate[index] = !second && !notUnique && !part.Valid && d.sameName(column.String, key)
	}
	for _, ok := range candidate {
		if ok {
			return true, rows.Err()
		}
	}
	return false, rows.Err()
}

// inspectSQLite describes the column of keys.
func inspectSQLite(ctx context.Context, db *sql.DB, _ dialect, table, key string) (c keyColumn, err error) {
	schema, name, ok := strings.Cut(table, ".")
	in := ", " + literal(schema)
	if !ok {
		name, in = table, ""
	}
	var (
		collation sql.NullString
		rowID     bool
		info      = "pragma_table_info(" + literal(name) + in + ")"
	)
	err = db.QueryRowContext(ctx, checkMark+"SELECT c.type, (SELECT x.coll FROM pragma_index_list("+literal(name)+in+") l JOIN pragma_index_xinfo(l.name"+in+") x ON x.key AND x.name = c.name WHERE l.\"unique\" AND NOT l.partial AND (SELECT count(*) FROM pragma_index_xinfo(l.name"+in+") k WHERE k.key) = 1 ORDER BY x.coll = 'BINARY' DESC LIMIT 1), c.pk = 1 AND (SELECT count(*) FROM "+info+" WHERE pk > 0) = 1 FROM "+info+" c WHERE lower(c.name) = lower("+literal(key)+")").
		Scan(&c.kind, &collation, &rowID)
	if err != nil {
		return c, noRow(err)
	}
	c.exists = true
	c.unique = collation.Valid || rowID
	c.folds = collation.Valid && collation.String != "BINARY" || isNumeric(c.kind)
	return c, nil
}

// isNumeric reports whether an SQLite column of a declared type converts texts to numbers:
// see "Determination Of Column Affinity" in the SQLite manual.
func isNumeric(kind string) bool {
	kind = strings.ToUpper(kind)
	has := func(part string) bool { return strings.Contains(kind, part) }
	switch {
	case has("INT"):
		return true
	case has("CHAR"), has("CLOB"), has("TEXT"), has("BLOB"), kind == "":
		return false
	}
	return true
}
