package oncesql

// ErrorNumber finds the number that a MySQL server gave to an error.
var ErrorNumber = errorNumber

// SQLiteCode finds the result code that SQLite gave to an error.
var SQLiteCode = sqliteCode
