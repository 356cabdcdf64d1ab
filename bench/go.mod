// How fast fetchonce is beside what its users have today. A module of its own, so
// that a user's program gets none of the peers.
module github.com/fetchonce/fetchonce/bench

go 1.26.0

replace github.com/fetchonce/fetchonce => ../

require github.com/fetchonce/fetchonce v0.0.0-00010101000000-000000000000
