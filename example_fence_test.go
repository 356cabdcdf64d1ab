package fetchonce_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
)

// A process that was stopped for longer than its lease must not overwrite a later process's
// write. So the row keeps the highest fence and refuses a lower one. See docs/fence.md.
func ExampleFetch_fence() {
	ctx := context.Background()
	db, err := sql.Open("pgx", "postgres://localhost/bank") // with a driver that you import
	if err != nil {
		panic(err)
	}
	balances, err := fetchonce.New(redis.NewClient(&redis.Options{Addr: "localhost:6379"}), fetchonce.Options[int64]{
		Prefix:      "balances",
		OnRedisDown: fetchonce.FailClosed, // without a lease there is no fence
	})
	if err != nil {
		panic(err)
	}
	defer balances.Close()

	errOvertaken := errors.New("a later holder of the lease has written")
	result, err := balances.Load(ctx, "alice", func(ctx context.Context, f *fetchonce.Fetch[int64]) (int64, error) {
		// Claim the row: an earlier holder of the lease can no longer write to it.
		var balance int64
		err := db.QueryRowContext(ctx, "UPDATE accounts SET fence = $2 WHERE key = $1 AND fence < $2 RETURNING balance",
			f.Key, f.Fence).Scan(&balance)
		if errors.Is(err, sql.ErrNoRows) {
			err = errOvertaken
		}
		if err != nil {
			return 0, err
		}
		balance += balance / 100
		done, err := db.ExecContext(ctx, "UPDATE accounts SET balance = $2 WHERE key = $1 AND fence = $3",
			f.Key, balance, f.Fence)
		if err != nil {
			return 0, err
		}
		if n, err := done.RowsAffected(); n == 0 {
			return 0, errors.Join(errOvertaken, err)
		}
		return balance, nil
	})
	fmt.Println(result.Value, err)
}
