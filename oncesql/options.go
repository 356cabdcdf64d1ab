package oncesql

import (
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/keytext"
	"github.com/fetchonce/fetchonce/internal/shape"
)

// Options configure a [Store]: the table, and how it holds a value. A value is one encoded
// column, Value, or several columns, Columns.
//
// Names are quoted, so their case matters in PostgreSQL: a table that was created without
// quotes has a name in lower case. [New] refuses a name that the database would cut.
type Options[V any] struct {
	// Dialect is the kind of the database. Required.
	Dialect Dialect

	// Table is the name of the table, or of a schema and a table, separated by a dot:
	// "billing.things". In MySQL and SQLite the schema is another database. The name itself
	// cannot contain a dot. Required.
	Table string

	// Key is the name of the key column. The column must have a unique index of its own, for
	// example as the primary key. It must distinguish all keys, unless FoldKeys is set. The
	// Store checks this before a fetch. Defaults to "key".
	Key string

	// FoldKeys treats keys that the column compares as equal as one key: "A" and "a" under a
	// collation that ignores case, "007" and "7" in a column of numbers, or two forms of a
	// uuid. Without it, a row whose key differs from the requested key is an error. Defaults
	// to false.
	FoldKeys bool

	// Value is the name of the column of encoded values. Defaults to "value".
	Value string

	// Codec encodes the column Value. For [fetchonce.JSON] the column must hold text: text,
	// varchar, json or jsonb. Any other codec writes a []byte, so the column must hold bytes.
	// A [fetchonce.KeyCodec] cannot be used with FoldKeys. Defaults to [fetchonce.JSON].
	Codec fetchonce.Codec

	// Columns are the names of the columns of a value, in the order of Values and Scan. They
	// replace Value and Codec. The table may have other columns that an insert may omit.
	Columns []string

	// Values returns the column values of v: one for each of Columns, of a type that
	// database/sql accepts.
	Values func(v V) []any

	// Scan returns the value of a row. key is the requested key; with FoldKeys, the row's key
	// may differ. Scan calls scan like [database/sql.Rows.Scan], with one destination for
	// each of Columns. [Store.Lookup] and [Store.Create] return its error unchanged. If Scan
	// returns [fetchonce.ErrNotFound], the key has no value for Lookup. It still has a row,
	// so Create returns that error.
	Scan func(key string, scan func(dest ...any) error) (V, error)
}

// check sets the defaults of opt, and returns an error that names the first invalid field.
func (opt *Options[V]) check() (dialect, error) {
	d, ok := opt.Dialect.dialect()
	if !ok {
		return d, fmt.Errorf("Options.Dialect is %v: it must be Postgres, MySQL or SQLite", opt.Dialect)
	}
	if opt.Key == "" {
		opt.Key = "key"
	}
	if err := opt.checkTable(d); err != nil {
		return d, err
	}
	if err := d.checkName("Options.Key", opt.Key); err != nil {
		return d, err
	}
	if len(opt.Columns) > 0 {
		return d, opt.checkColumns(d)
	}
	return d, opt.checkValue(d)
}

func (opt *Options[V]) checkTable(d dialect) error {
	if opt.Table == "" {
		return errors.New("Options.Table is empty")
	}
	parts := strings.Split(opt.Table, ".")
	if len(parts) > 2 {
		return fmt.Errorf("Options.Table %q has more than one dot: it must be a table, or a schema and a table", opt.Table)
	}
	for _, part := range parts {
		if part == "" {
			return fmt.Errorf("Options.Table %q has nothing on one side of its dot", opt.Table)
		}
		if err := d.checkName("Options.Table", part); err != nil {
			return err
		}
	}
	return nil
}

// checkColumns checks the form with columns of the caller's own.
func (opt *Options[V]) checkColumns(d dialect) error {
	switch {
	case opt.Value != "":
		return errors.New("Options.Value is set, and Columns are: a value is in one column or in several")
	case opt.Codec != nil:
		return errors.New("Options.Codec is set, and Columns are: it encodes the one column Value")
	case opt.Values == nil:
		return errors.New("Options.Values is nil: it must say how to write Columns")
	case opt.Scan == nil:
		return errors.New("Options.Scan is nil: it must say how to read Columns")
	}
	opt.Columns = slices.Clone(opt.Columns)
	for i, name := range opt.Columns {
		if err := d.checkName("Options.Columns", name); err != nil {
			return err
		}
		if d.sameName(name, opt.Key) {
			return fmt.Errorf("Options.Columns: %q is the Key, which is written for you", name)
		}
		if slices.ContainsFunc(opt.Columns[:i], func(other string) bool { return d.sameName(name, other) }) {
			return fmt.Errorf("Options.Columns: %q stands there twice", name)
		}
	}
	return nil
}

// checkValue checks the form with one encoded column.
func (opt *Options[V]) checkValue(d dialect) error {
	switch {
	case opt.Values != nil:
		return errors.New("Options.Values is set, but Columns are not")
	case opt.Scan != nil:
		return errors.New("Options.Scan is set, but Columns are not")
	}
	if opt.Value == "" {
		opt.Value = "value"
	}
	if _, ok := opt.Codec.(fetchonce.KeyCodec); ok && opt.FoldKeys {
		return errors.New("Options.FoldKeys is set, and Codec is a KeyCodec: it could not read a value under another spelling of its key")
	}
	if opt.Codec == nil {
		opt.Codec = fetchonce.JSON
	}
	if err := d.checkName("Options.Value", opt.Value); err != nil {
		return err
	}
	if d.sameName(opt.Value, opt.Key) {
		return fmt.Errorf("Options.Value: %q is the Key", opt.Value)
	}
	return nil
}

// checkName returns an error if a name of field cannot be quoted as it is.
func (d dialect) checkName(field, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s: a name is empty", field)
	case strings.ContainsRune(name, 0):
		return fmt.Errorf("%s: %q has a NUL byte", field, name)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s: %q is not valid UTF-8", field, name)
	case d.maxName > 0 && d.nameLen(name) > d.maxName:
		return fmt.Errorf("%s: %q is longer than %d %s", field, name, d.maxName, d.nameUnit)
	}
	return nil
}

// An encoding is how a value stands in one column.
type encoding[V any] struct {
	codec  fetchonce.Codec
	text   bool // the codec writes text, which is sent as a string
	unsure bool // the codec may refuse to read what it wrote
}

// encodingOf returns the encoding of a codec. The error names the parts of V that it cannot
// encode.
func encodingOf[V any](codec fetchonce.Codec) (encoding[V], error) {
	rules := shape.Other
	switch codec {
	case fetchonce.Msgpack:
		rules = shape.Msgpack
	case fetchonce.JSON:
		rules = shape.JSON
	}
	form := shape.Of(reflect.TypeFor[V](), rules)
	if len(form.Refused) > 0 {
		return encoding[V]{}, fmt.Errorf("Options.Codec cannot keep the values: %s", shape.List(form.Refused))
	}
	return encoding[V]{codec: codec, text: codec == fetchonce.JSON, unsure: form.Unsure}, nil
}

func (e encoding[V]) write(key string, v V) ([]any, error) {
	data, err := e.marshal(key, v)
	if err != nil {
		return nil, fmt.Errorf("oncesql: encode the value of %s: %w", keytext.Quote(key), err)
	}
	if e.unsure {
		var read V
		if err := e.unmarshal(key, data, &read); err != nil {
			return nil, fmt.Errorf("oncesql: encode the value of %s: the codec does not read what it wrote: %w", keytext.Quote(key), err)
		}
	}
	if e.text {
		return []any{string(data)}, nil
	}
	if data == nil {
		data = []byte{} // a nil would be written as NULL
	}
	return []any{data}, nil
}

// marshal calls the codec. A KeyCodec receives the key.
func (e encoding[V]) marshal(key string, v V) ([]byte, error) {
	if c, ok := e.codec.(fetchonce.KeyCodec); ok {
		return c.MarshalKey(key, v)
	}
	return e.codec.Marshal(v)
}

// unmarshal calls the codec. A KeyCodec receives the key.
func (e encoding[V]) unmarshal(key string, data []byte, v *V) error {
	if c, ok := e.codec.(fetchonce.KeyCodec); ok {
		return c.UnmarshalKey(key, data, v)
	}
	return e.codec.Unmarshal(data, v)
}

func (e encoding[V]) read(key string, scan func(dest ...any) error) (V, error) {
	var (
		v, zero V
		data    sql.Null[[]byte]
	)
	if err := scan(&data); err != nil {
		return zero, err
	}
	// Not ErrNotFound: the row has the key, so Create could not add a value.
	if !data.Valid {
		return zero, fmt.Errorf("oncesql: the value of %s is NULL", keytext.Quote(key))
	}
	if err := e.unmarshal(key, data.V, &v); err != nil {
		return zero, fmt.Errorf("oncesql: decode the value of %s: %w", keytext.Quote(key), err)
	}
	return v, nil
}

// columnValues returns values if their number is that of the columns.
func columnValues(values []any, columns int, key string) ([]any, error) {
	if len(values) != columns {
		return nil, fmt.Errorf("oncesql: create %s: Values returned %d values for %d Columns", keytext.Quote(key), len(values), columns)
	}
	return values, nil
}
