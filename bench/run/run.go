package run

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"time"
)

// A Plan says what to measure.
type Plan struct {
	Workloads []*Workload
	Short     bool                                  // the short form of each
	Reps      int                                   // repetitions of every run
	For       time.Duration                         // how long each run measures
	Profile   string                                // a directory for CPU profiles; "" for none
	Only      func(p Params, peer string) bool      // reports whether to measure; nil means all
	Report    func(done, all int, line *Line) error // called after each run
}

// patience is how long a run may take beyond the time that it measures.
const patience = 90 * time.Second

// Run measures the plan. The peers of a workload with its parameters run one after the other, in a new
// order in each repetition. So a machine that is slower some minutes later affects all of them.
func (p *Plan) Run(ctx context.Context) error {
	if p.Profile != "" {
		if err := os.MkdirAll(p.Profile, 0o755); err != nil {
			return err
		}
	}
	all := p.runs()
	session := rand.Text()[:8]
	for i, t := range all {
		line := t.run(ctx, p.For, p.Profile)
		line.Session = session
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := p.Report(i+1, len(all), line); err != nil {
			return err
		}
	}
	return nil
}

// A turn is one run of a plan.
type turn struct {
	load   *Workload
	params Params
	peer   string
	rep    int
}

func (p *Plan) runs() []turn {
	var all []turn
	for rep := range p.Reps {
		for _, load := range p.Workloads {
			params := load.Full
			if p.Short {
				params = load.Short
			}
			for _, ps := range params {
				first := len(all)
				for _, peer := range load.Peers(ps) {
					if p.Only == nil || p.Only(ps, peer) {
						all = append(all, turn{load: load, params: ps, peer: peer, rep: rep + 1})
					}
				}
				these := all[first:]
				mathrand.Shuffle(len(these), func(i, j int) { these[i], these[j] = these[j], these[i] })
			}
		}
	}
	return all
}

// run measures once and returns the figures, or the error.
func (t turn) run(ctx context.Context, duration time.Duration, profile string) *Line {
	line := &Line{
		Workload: t.load.Name, Params: t.params, Peer: t.peer, Rep: t.rep, When: time.Now().Round(time.Second), For: duration,
		Machine: Machine{CPUs: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()},
	}
	ctx, cancel := context.WithTimeoutCause(ctx, duration+patience, errors.New("the run took too long"))
	defer cancel()
	if err := t.measure(ctx, line, profile); err != nil {
		line.Figures = nil
		line.Error = err.Error()
	}
	return line
}

func (t turn) measure(ctx context.Context, line *Line, profile string) (err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, err := startServer()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	line.Machine.Redis = server.version

	c := &crew{server: server}
	job := Job{Workload: t.load.Name, Peer: t.peer, Params: t.params, Rep: t.rep, For: line.For, Redis: server.addr, Dir: dir, Profile: profile}
	if err := c.start(ctx, job, t.load.processes(t.params)); err != nil {
		return err
	}
	result, err := c.follow()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(cause, err)
		}
		return err
	}
	line.Figures, line.Error = result.figures(), result.example
	if t.load.Finish != nil {
		return t.load.Finish(t.params, result, line.Figures)
	}
	return nil
}

// A crew is the worker processes of a run, in the process that started them.
type crew struct {
	server  *server
	workers []*process
	began   time.Time // of the measurement, and the usages at that moment
	before  redisUsage
	busy    time.Duration
	result  Result
}

// A process is a worker process.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// start starts n processes. They end when ctx does.
func (c *crew) start(ctx context.Context, job Job, n int) error {
	for job.Index = range n {
		p, err := startProcess(ctx, job)
		if err != nil {
			return errors.Join(err, c.end())
		}
		c.workers = append(c.workers, p)
	}
	return nil
}

func startProcess(ctx context.Context, job Job) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	description, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(description))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd: cmd, in: in, out: json.NewDecoder(bufio.NewReader(out))}, nil
}

// follow answers the workers' meetings until all have sent their part. It returns the result.
func (c *crew) follow() (*Result, error) {
	c.result = Result{Counts: make(map[string]float64), Lists: make(map[string][]float64), Times: make(map[string]*Samples)}
	for {
		messages, err := c.receive()
		if err != nil {
			return nil, errors.Join(err, c.end())
		}
		if messages[0].Kind != kindPart {
			if err := c.meeting(messages); err != nil {
				return nil, errors.Join(err, c.end())
			}
			continue
		}
		for _, m := range messages {
			if err := c.result.add(m.Part); err != nil {
				return nil, errors.Join(err, c.end())
			}
		}
		return &c.result, c.end()
	}
}

// receive returns the next message of each worker. All must have the same kind.
func (c *crew) receive() ([]message, error) {
	messages := make([]message, len(c.workers))
	for i, p := range c.workers {
		if err := p.out.Decode(&messages[i]); err != nil {
			return nil, fmt.Errorf("process %d ended without a result: %w", i, err)
		}
		if messages[i].Kind == kindError {
			return nil, fmt.Errorf("process %d: %s", i, messages[i].Note)
		}
		if messages[i].Kind != messages[0].Kind {
			return nil, fmt.Errorf("process %d is at %q while process 0 is at %q", i, messages[i].Kind, messages[0].Kind)
		}
	}
	return messages, nil
}

// soon is the time between the answer to Begin and the moment at which all workers begin.
const soon = 10 * time.Millisecond

// meeting answers the workers when all of them have reached the same point.
func (c *crew) meeting(messages []message) (err error) {
	notes := make([]string, len(messages))
	for i, m := range messages {
		notes[i] = m.Note
	}
	switch messages[0].Kind {
	case kindBegin:
		if c.before, err = c.server.usage(); err != nil {
			return err
		}
		c.began, c.busy = time.Now(), machineBusy()
		notes[0] = strconv.FormatInt(c.began.Add(soon).UnixNano(), 10)
	case kindEnd:
		c.result.window, c.result.busy = time.Since(c.began), machineBusy()-c.busy
		after, err := c.server.usage()
		if err != nil {
			return err
		}
		c.result.redis = after.minus(c.before)
	}
	answer, err := json.Marshal(notes)
	if err != nil {
		return err
	}
	// At once, because the pipe of a slow worker may be full.
	var all sync.WaitGroup
	errs := make([]error, len(c.workers))
	for i, p := range c.workers {
		all.Go(func() { _, errs[i] = p.in.Write(answer) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// end closes the workers' inputs and waits until they have ended.
func (c *crew) end() error {
	var all error
	for _, p := range c.workers {
		_ = p.in.Close()
	}
	for i, p := range c.workers {
		if err := p.cmd.Wait(); err != nil {
			all = errors.Join(all, fmt.Errorf("process %d: %w", i, err))
		}
	}
	return all
}
