package pgtest

// Programs returns the directory of PostgreSQL's programs.
var Programs = locate
