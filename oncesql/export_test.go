package oncesql

// ErrorNumber finds the number that a MySQL server gave to an error.
var ErrorNumber = errorNumber
