package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// jobVariable is the environment variable that makes this program a worker. Its
// value is a job in JSON: the environment, unlike arguments, is not shown to
// other users, and a DSN may have a password.
const jobVariable = "FETCHTHING_JOB"

// A job is what a worker has to do.
type job struct {
	Worker  string // its name
	Place   place
	Remote  string // URL of the API, for this worker
	Naive   bool
	Names   []string
	Callers int // of each name
}

// A report is a line that a worker prints: first that it is ready, then, after
// it was told to start, what each of its callers got.
type report struct {
	Ready bool          `json:"ready,omitempty"`
	Name  string        `json:"name,omitempty"`
	Wait  time.Duration `json:"wait,omitempty"`
	Thing *Thing        `json:"thing,omitempty"`
	Error string        `json:"error,omitempty"`
}

// workerMain is the main of a worker. It returns the exit status.
func workerMain(description string) int {
	signal.Ignore(os.Interrupt) // ^C is for the process that started us: it ends our input
	var j job
	err := json.Unmarshal([]byte(description), &j)
	if err == nil {
		err = j.work(os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fetchthing: worker:", err)
		return 1
	}
	return 0
}

func (j job) work(input io.Reader, output io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	start := make(chan struct{})
	go func() { // ends with this process
		lines := bufio.NewScanner(input)
		if lines.Scan() {
			close(start)
		}
		for lines.Scan() { // until the process that started us closes our input, or dies
		}
		cancel()
	}()

	rdb, db, err := j.Place.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(rdb.Close(), db.Close()) }()
	fetch, closeLoader, err := j.fetcher(rdb, db)
	if err != nil {
		return err
	}
	defer closeLoader()

	reports := json.NewEncoder(output)
	if err := reports.Encode(report{Ready: true}); err != nil {
		return err
	}
	select {
	case <-start:
	case <-ctx.Done():
		return nil // and nobody wants to hear of it
	}
	for r := range j.call(ctx, fetch) {
		if err := reports.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// fetcher returns the fetchRemoteThing that the job is about.
func (j job) fetcher(rdb *redis.Client, db *sql.DB) (fetch fetchFunc, done func(), err error) {
	api := remote{url: j.Remote}
	if j.Naive {
		return (&naive{db: db, table: j.Place.Table, remote: api}).fetchRemoteThing, func() {}, nil
	}
	t, err := openThings(rdb, db, j.Place, api)
	if err != nil {
		return nil, nil, err
	}
	return t.fetchRemoteThing, func() { _ = t.loader.Close() }, nil
}

type fetchFunc func(ctx context.Context, name string) (Thing, error)

// call runs all callers at once. The channel it returns is closed after the last
// has reported.
func (j job) call(ctx context.Context, fetch fetchFunc) <-chan report {
	reports := make(chan report, len(j.Names)*j.Callers)
	var callers sync.WaitGroup
	for range j.Callers {
		for _, name := range j.Names {
			callers.Go(func() { reports <- callOnce(ctx, fetch, name) })
		}
	}
	go func() {
		callers.Wait()
		close(reports)
	}()
	return reports
}

func callOnce(ctx context.Context, fetch fetchFunc, name string) report {
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // a caller has an end, as a web request has
	defer cancel()
	began := time.Now()
	thing, err := fetch(ctx, name)
	r := report{Name: name, Wait: time.Since(began)}
	if err != nil {
		r.Error = err.Error()
	} else {
		r.Thing = &thing
	}
	return r
}
