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

// Update changes the source of truth and the cache together: it calls write,
// which changes what a fetch, or the [Store], would find, and makes the next Get
// find that.
//
// While write runs, the key is marked in Redis as being written. The value that
// was kept is gone; a Get goes to the source, one process at a time as ever, and
// what it finds there, which may be old or new, is not stored. When write has
// returned, with or without an error, the key is invalidated as by
// [Loader.Delete] and the mark is taken off. So a process that dies at any point
// leaves at most a mark, which ends after [Options.Lease], and never a value from
// before the write: only a fetch that began before that, and goes on when the mark
// has ended, is told, with what it found, to who waits for it. Updates of one key may run at the same time: each has a mark
// of its own. They are not serialised; where write needs that, use a lock, or
// the database's.
//
// write is given ctx. Its error comes back as it is. If it returned nil, the
// error of Update is an [*Error] that says that write was done, but not whether
// all caches know: a Get may return an old value until its TTL. If neither went
// well, the error joins both. If write panics, Update does its part and panics
// on.
//
// When Redis does not answer, [Options.OnRedisDown] decides: under [FailClosed]
// an *Error is returned before write was called. A mark that arrives in Redis after
// that, or after ctx has ended, is taken off in the background. Under [FailOpen] write is called;
// then only if Redis is back when it has returned is the error nil.
func (l *Loader[V]) Update(ctx context.Context, key string, write func(ctx context.Context) error) (err error) {
	k, err := l.enter(ctx, "update", key, false)
	if err != nil {
		return err
	}
	if write == nil {
		return &Error{Op: "update", Key: key, Err: errors.New("write is nil")}
	}
	mark, sent := l.mailbox.Owner(), time.Now()
	markErr := l.redis.Mark(ctx, k.names, mark, l.opt.Lease)
	if markErr != nil {
		if err = ctx.Err(); err == nil {
			err = l.refuse(k, "update", markErr)
		}
		if err != nil {
			if !protocol.NotSent(markErr) {
				l.dropMark(k, mark, l.mayArrive(markErr))
			}
			return err
		}
	}
	l.hub.Changed(k.names.Value)
	stop := l.keepMark(context.WithoutCancel(ctx), k, mark, sent, l.mayArrive(markErr))
	defer func() {
		if ours := l.written(ctx, k, mark, stop); err == nil {
			err = ours
		} else if ours != nil {
			err = errors.Join(err, ours)
		}
	}()
	return write(ctx)
}

// keepMark renews a mark until stop is called: for as long as write takes,
// whatever becomes of its context. It is no lease, which is lost for good when it
// could not be renewed in time: while Redis was away, or this process was stopped,
// an old value may have been stored, and the renewal that gets through again ends
// that too.
//
// late is for how long the first Mark may still arrive. stop returns that of the last
// one which was not answered.
func (l *Loader[V]) keepMark(ctx context.Context, k keyed, mark string, sent time.Time, late time.Duration) (stop func() time.Duration) {
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
			// Its context does not end with stopped: what is on its way then would
			// still arrive, and after the unmark.
			if err := l.redis.Remark(ctx, k.names, mark, l.opt.Lease); err != nil {
				pause = l.opt.Lease / 10
				late = max(late, l.mayArrive(err))
			}
			next.Reset(time.Until(sent.Add(pause)))
		}
	})
	return func() time.Duration {
		close(stopped)
		renewing.Wait()
		return late
	}
}

// written ends an Update. A Mark that was not answered may arrive after the Unmark:
// then the mark is taken off once more.
func (l *Loader[V]) written(ctx context.Context, k keyed, mark string, stop func() time.Duration) error {
	late := stop() // first: a renewal must not set again what is taken off
	err := l.redis.Unmark(context.WithoutCancel(ctx), k.names, mark)
	l.changed(k)
	if err != nil || late > 0 {
		l.dropMark(k, mark, late)
	}
	if err != nil {
		return &Error{Op: "update", Key: k.user, Err: fmt.Errorf("written, but caches may be stale until their TTL: %w", err)}
	}
	return nil
}

// dropMark removes, in the background, a write mark that an Update may have left. If again is
// not 0, it does so once more that much later.
func (l *Loader[V]) dropMark(k keyed, mark string, again time.Duration) {
	l.cleanup.Add(cleanup.Task{
		TakeBack: func(ctx context.Context) error { return l.redis.Unmark(ctx, k.names, mark) },
		Lasts:    l.opt.Lease,
		Again:    again,
	})
}
