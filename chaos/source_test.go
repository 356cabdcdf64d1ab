//go:build unix

package main_test

import (
	"testing"

	"github.com/fetchonce/fetchonce/chaos/origin"
	"github.com/fetchonce/fetchonce/internal/pgtest"
)

func newSource(t *testing.T) (s *origin.Source, dsn string) {
	t.Helper()
	dsn = pgtest.Start(t)
	s, err := origin.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.DB.Close() })
	if err := s.CreateTables(); err != nil {
		t.Fatal(err)
	}
	return s, dsn
}
