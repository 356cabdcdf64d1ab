package oncesql_test

import (
	"context"
	"database/sql"
	"time"

	"github.com/fetchonce/fetchonce/oncesql"
)

// A value of any type is one column, as JSON. In production, a migration usually creates the
// table.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("pgx", "postgres://localhost/shop") // with a driver that you import
	if err != nil {
		panic(err)
	}
	type Price struct{ Cents int }
	store, err := oncesql.New(db, oncesql.Options[Price]{Dialect: oncesql.Postgres, Table: "prices"})
	if err != nil {
		panic(err)
	}
	if err := store.CreateTable(ctx); err != nil {
		panic(err)
	}
	kept, err := store.Create(ctx, "tea", Price{Cents: 250})
	_, _ = kept, err // the price in the table, perhaps of another process
}

// A value is several columns of an existing table.
func ExampleNew_columns() {
	db, err := sql.Open("sqlite", "file:shop.db?_pragma=busy_timeout(5000)")
	if err != nil {
		panic(err)
	}
	type Article struct {
		Title string
		Added time.Time
	}
	store, err := oncesql.New(db, oncesql.Options[Article]{
		Dialect: oncesql.SQLite,
		Table:   "articles",
		Key:     "number",
		Columns: []string{"title", "added_at"},
		Values:  func(v Article) []any { return []any{v.Title, v.Added} },
		Scan: func(_ string, scan func(dest ...any) error) (v Article, err error) {
			err = scan(&v.Title, &v.Added)
			return v, err
		},
	})
	_, _ = store, err
}
