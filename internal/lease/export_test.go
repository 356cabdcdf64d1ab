package lease

import "github.com/fetchonce/fetchonce/internal/contexttest"

// IsFree reports whether the keeper's mutex can be locked.
func (k *Keeper) IsFree() bool { return contexttest.IsFree(&k.mu) }
