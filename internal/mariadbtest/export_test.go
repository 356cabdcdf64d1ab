package mariadbtest

// Programs returns the paths of MariaDB's programs.
var Programs = locate
