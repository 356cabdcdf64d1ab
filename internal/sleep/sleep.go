// Package sleep waits between two attempts. internal/protocol, internal/wake and internal/near
// use it.
package sleep

import (
	"context"
	"time"
)

// For waits for d. It reports whether that time has passed before ctx ended.
func For(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
