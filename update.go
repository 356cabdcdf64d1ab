package fetchonce

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fetchonce/fetchonce/internal/cleanup"
	"github.com/fetchonce/fetchonce/internal/protocol"
)

// Update changes the source of truth and the cache together. It calls write, which changes what a
// fetch or the [Store] returns. The next Get then returns the new value.
//
// While write runs, a write mark in Redis replaces the stored value. Meanwhile a Get fetches, in
// one process at a time. The fetched value may be older than the write, so it is not stored. When
// write has returned, even with an error, Update invalidates the key like [Loader.Delete] and
// removes the mark. If the process dies, its mark ends after [Options.Lease]. No value from before
// the write is stored after that. Such a value can still reach callers of a fetch that started
// before the mark and ended after it.
//
// Updates of one key may overlap, and each has its own mark. Update does not serialize them: use a
// lock, or a transaction of the database.
//
// write receives the caller's ctx. Its error is returned unchanged. If write succeeds and the
// invalidation fails, the error is an [*Error] with [ErrNotInvalidated]: a Get may return a stored
// value until its TTL. If both fail, the error joins both. If write panics, Update ends as after an
// error, and panics. If the Loader is closed or ctx had ended before the call, Update returns
// [ErrClosed] or ctx.Err(), and does not call write.
//
// If Redis is unavailable, [Options.OnRedisDown] decides. With [FailClosed], Update returns an
// *Error and does not call write. If the mark arrives later anyway, it is removed in the background.
// With [FailOpen], Update calls write, and the error is nil only if Redis answers after it.
func (l *Loader[V]) Update(ctx context.Context, key string, write func(ctx context.Context) error) (err error) {
	k, err := l.checkArgs(ctx, "update", key, false)
	if err != nil {
		return err
	}
	if write == nil {
		return &Error{Op: "update", Key: key, Err: errors.New("write is nil")}
	}
	mark, sent := l.client.Mailbox.Owner(), time.Now()
	markErr := l.redis.Mark(ctx, k.names, mark, l.opt.Lease)
	if markErr != nil {
		if err = ctx.Err(); err == nil {
			err = l.onRedisDown(k, "update", markErr)
		}
		if err != nil {
			if !protocol.NotSent(markErr) {
				l.dropMark(k, mark, l.mayArrive(markErr))
			}
			return err
		}
	}
	l.client.Hub.Invalidate(k.names.Value)
	stop := l.keepMark(context.WithoutCancel(ctx), k, mark, sent, l.mayArrive(markErr))
	defer func() {
		if ours := l.finishUpdate(ctx, k, mark, stop); err == nil {
			err = ours
		} else if ours != nil {
			err = errors.Join(err, ours)
		}
	}()
	return write(ctx)
}

// keepMark renews a write mark until stop is called: for as long as write runs, also after its
// context has ended. A renewal that is sent after the mark has ended sets the mark again, and
// removes a value that was stored meanwhile.
//
// inFlight is for how long an unanswered Mark may still arrive in Redis. stop returns the longest
// such time of all renewals.
func (l *Loader[V]) keepMark(ctx context.Context, k cacheKey, mark string, sent time.Time, inFlight time.Duration) (stop func() time.Duration) {
	stopped := make(chan struct{})
	var renewing sync.WaitGroup
	renewing.Go(func() { // ends when stopped
		next := time.NewTimer(time.Until(sent.Add(l.opt.Lease / 3)))
		defer next.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-next.C:
			}
			sent, pause := time.Now(), l.opt.Lease/3
			// Its context does not end with stopped: a renewal in flight would still
			// arrive, after the Unmark.
			if err := l.redis.Remark(ctx, k.names, mark, l.opt.Lease); err != nil {
				pause = l.opt.Lease / 10
				inFlight = max(inFlight, l.mayArrive(err))
			}
			next.Reset(time.Until(sent.Add(pause)))
		}
	})
	return func() time.Duration {
		close(stopped)
		renewing.Wait()
		return inFlight
	}
}

// finishUpdate ends an Update. If a Mark was not answered, it may arrive after the Unmark. So the mark
// is removed again later.
func (l *Loader[V]) finishUpdate(ctx context.Context, k cacheKey, mark string, stop func() time.Duration) error {
	inFlight := stop() // first: a renewal would set the mark again
	err := l.redis.Unmark(context.WithoutCancel(ctx), k.names, mark)
	l.changed(k)
	if err != nil || inFlight > 0 {
		l.dropMark(k, mark, inFlight)
	}
	if err != nil {
		return &Error{Op: "update", Key: k.user, Err: fmt.Errorf("written, but %w: %w", ErrNotInvalidated, err)}
	}
	return nil
}

// dropMark removes, in the background, a write mark that an Update may have left. If again is
// not 0, it does so once more that much later.
func (l *Loader[V]) dropMark(k cacheKey, mark string, again time.Duration) {
	l.cleanup.Add(cleanup.Task{
		Undo:  func(ctx context.Context) error { return l.redis.Unmark(ctx, k.names, mark) },
		Lasts: l.opt.Lease,
		Again: again,
	})
}
