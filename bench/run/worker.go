package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Worker is one process of a run, in that process.
type Worker struct {
	Job
	in  *json.Decoder
	out *json.Encoder

	begun   time.Time
	before  usage
	profile *os.File // nil if none is written

	mu    sync.Mutex // guards what follows
	part  Part
	times map[string][]*Samples
}

// A Job tells a worker process what to measure.
type Job struct {
	Workload string
	Peer     string
	Params   Params
	Index    int           // of this process, from 0
	Rep      int           // the repetition, from 1
	For      time.Duration // how long to measure
	Redis    string        // host:port of an empty server, which only this run uses
	Dir      string        // a directory that the processes of this run share
	Profile  string        // where CPU profiles go; "" for none
}

// A Part is what one process has measured.
type Part struct {
	Ops     int64
	Errors  int64
	Example string  // one of the errors
	Seconds float64 // from Begin to End
	Usage   usage   // in that time
	Counts  map[string]float64
	Lists   map[string][]float64
	Times   map[string][]byte // histograms
}

// jobVariable is the environment variable that makes this program a worker. Its value is a Job in JSON.
const jobVariable = "FETCHONCE_BENCH_JOB"

// IsWorker reports whether this process is to call [Work].
func IsWorker() bool { return os.Getenv(jobVariable) != "" }

// Work is the main function of a worker process.
func Work(workloads []*Workload) error {
	w := &Worker{in: json.NewDecoder(os.Stdin), out: json.NewEncoder(os.Stdout), times: make(map[string][]*Samples)}
	w.part.Counts, w.part.Lists = make(map[string]float64), make(map[string][]float64)
	os.Stdout = os.Stderr // the parent reads only messages, and not what a library prints
	if err := json.Unmarshal([]byte(os.Getenv(jobVariable)), &w.Job); err != nil {
		return err
	}
	load := Find(workloads, w.Workload)
	if load == nil {
		return fmt.Errorf("no workload %q", w.Workload)
	}
	if err := load.Run(context.Background(), w); err != nil {
		_ = w.out.Encode(message{Kind: kindError, Note: err.Error()})
		return err
	}
	return w.report()
}

// Find returns the workload of that name, or nil.
func Find(workloads []*Workload, name string) *Workload {
	for _, load := range workloads {
		if load.Name == name {
			return load
		}
	}
	return nil
}

// Meet waits until all processes of the run have called it. It returns their notes in the order of
// Index.
func (w *Worker) Meet(note string) ([]string, error) { return w.meet(kindMeet, note) }

func (w *Worker) meet(kind, note string) ([]string, error) {
	if err := w.out.Encode(message{Kind: kind, Note: note}); err != nil {
		return nil, err
	}
	var notes []string
	if err := w.in.Decode(&notes); err != nil {
		return nil, fmt.Errorf("another process of the run has ended: %w", err)
	}
	return notes, nil
}

// Begin waits until all processes of the run are ready, and returns in all of them at the same moment.
// The time between Begin and End is measured.
func (w *Worker) Begin() error {
	runtime.GC() // the garbage of the preparation must not count
	if err := w.startProfile(); err != nil {
		return err
	}
	notes, err := w.meet(kindBegin, "")
	if err != nil {
		return err
	}
	begin, err := strconv.ParseInt(notes[0], 10, 64)
	if err != nil {
		return err
	}
	w.before = usageNow()
	left := time.Until(time.Unix(0, begin)) // by the wall clock, which all processes share
	w.begun = time.Now().Add(left)
	time.Sleep(left)
	return nil
}

// End ends the measurement and waits until all processes have called it.
func (w *Worker) End() error {
	w.part.Seconds = time.Since(w.begun).Seconds()
	if _, err := w.meet(kindEnd, ""); err != nil {
		return err
	}
	w.part.Usage = usageNow().minus(w.before)
	return w.stopProfile()
}

func (w *Worker) startProfile() (err error) {
	if w.Profile == "" {
		return nil
	}
	parts := strings.Fields(fmt.Sprint(w.Workload, " ", w.Params, " ", w.Peer, " ", w.Rep, " ", w.Index))
	if w.profile, err = os.Create(filepath.Join(w.Profile, strings.Join(parts, "-")+".pprof")); err != nil {
		return err
	}
	return pprof.StartCPUProfile(w.profile)
}

func (w *Worker) stopProfile() error {
	if w.profile == nil {
		return nil
	}
	pprof.StopCPUProfile()
	return w.profile.Close()
}

// Begun returns the moment at which the measurement began, just before Begin returned.
func (w *Worker) Begun() time.Time { return w.begun }

// Ops adds n operations, to which the figures per operation and per second refer.
func (w *Worker) Ops(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part.Ops += n
}

// Failed counts an operation that failed.
func (w *Worker) Failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part.Errors++
	w.part.Example = err.Error()
}

// Count adds n to a figure, which is the sum over all processes.
func (w *Worker) Count(figure string, n float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part.Counts[figure] += n
}

// List appends values to a list of all processes, for [Workload.Finish].
func (w *Worker) List(name string, values ...float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part.Lists[name] = append(w.part.Lists[name], values...)
}

// Samples returns new Samples, which one goroutine at a time may use. All samples of a name, in all
// processes, give the figures name_p50_us, name_p99_us, name_mean_us and name_max_us. The samples of
// the name "" are the durations of operations and give p50_us and so on.
func (w *Worker) Samples(name string) *Samples {
	s := newSamples()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.times[name] = append(w.times[name], s)
	return s
}

func (w *Worker) report() error {
	w.part.Times = make(map[string][]byte)
	for name, all := range w.times {
		sum := newSamples()
		for _, s := range all {
			sum.merge(s)
		}
		var err error
		if w.part.Times[name], err = sum.encode(); err != nil {
			return err
		}
	}
	return w.out.Encode(message{Kind: kindPart, Part: &w.part})
}

// A Loop says how operations are repeated.
type Loop struct {
	Goroutines int
	Pause      time.Duration // before each operation; without it, the load is as high as it can be
	Batch      int           // time one operation in Batch, if an operation is as fast as a clock; defaults to 1
}

// Loop measures an operation for the time of the run. It calls Begin, then do repeatedly on each
// goroutine, and End. A failed operation is counted. The goroutines are numbered from 0.
func (w *Worker) Loop(ctx context.Context, l Loop, do func(ctx context.Context, goroutine int) error) error {
	if l.Batch == 0 {
		l.Batch = 1
	}
	samples := make([]*Samples, l.Goroutines)
	for g := range samples {
		samples[g] = w.Samples("")
	}
	if err := w.Begin(); err != nil {
		return err
	}
	var all sync.WaitGroup
	for g := range l.Goroutines {
		all.Go(func() { w.loop(l, samples[g], func() error { return do(ctx, g) }) })
	}
	all.Wait()
	return w.End()
}

// loop is one goroutine of Loop. It times the first operation of each batch.
func (w *Worker) loop(l Loop, s *Samples, do func() error) {
	deadline := w.begun.Add(w.For)
	var ops int64
	defer func() { w.Ops(ops) }()
	for {
		if l.Pause > 0 {
			time.Sleep(l.Pause)
		}
		start := time.Now()
		if start.After(deadline) {
			return
		}
		err := do()
		s.Add(time.Since(start))
		for range l.Batch - 1 {
			err = errors.Join(err, do())
		}
		ops += int64(l.Batch)
		if err != nil {
			w.Failed(err)
		}
	}
}

// A message is what a worker sends to the process that started it. The answer to kindMeet, kindBegin
// and kindEnd is the notes of all workers.
type message struct {
	Kind string
	Note string `json:",omitempty"`
	Part *Part  `json:",omitempty"`
}

const (
	kindMeet  = "meet"
	kindBegin = "begin"
	kindEnd   = "end"
	kindPart  = "part"
	kindError = "error"
)
