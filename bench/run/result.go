package run

import (
	"fmt"
	"maps"
	"runtime"
	"time"
)

// Figures are the results of a run, by name.
type Figures map[string]float64

// A Line is a run, as it is written to a file of JSON lines.
type Line struct {
	Workload string        `json:"workload"`
	Params   Params        `json:"params"`
	Peer     string        `json:"peer"`
	Session  string        `json:"session"` // of one plan; ratios are within a repetition of a session
	Rep      int           `json:"rep"`
	When     time.Time     `json:"when"`
	For      time.Duration `json:"for"`
	Machine  Machine       `json:"machine"`
	Figures  Figures       `json:"figures,omitempty"`
	Error    string        `json:"error,omitempty"` // the reason why there are no figures, or an error of an operation
}

// A Machine is where a run took place.
type Machine struct {
	CPUs  int    `json:"cpus"`
	OS    string `json:"os"`
	Go    string `json:"go"`
	Redis string `json:"redis"`
}

// A Result is what the processes of a run have measured together.
type Result struct {
	Ops     int64
	Errors  int64
	Seconds float64 // of the process that took longest for its operations
	Counts  map[string]float64
	Lists   map[string][]float64
	Times   map[string]*Samples

	example string
	client  usage
	redis   redisUsage
	window  time.Duration // from the first Begin to the last End
	busy    time.Duration // of all CPUs of the machine, in that time
}

// foreignCPU returns the share of the machine that other programs used during the run.
func (r *Result) foreignCPU() float64 {
	foreign := r.busy - r.client.CPU - r.redis.cpu
	return max(0, float64(foreign)/float64(r.window)/float64(runtime.NumCPU()))
}

func (r *Result) add(p *Part) error {
	r.Ops += p.Ops
	r.Errors += p.Errors
	if p.Ops > 0 {
		r.Seconds = max(r.Seconds, p.Seconds)
	}
	if p.Example != "" {
		r.example = p.Example
	}
	r.client = r.client.plus(p.Usage)
	for name, n := range p.Counts {
		r.Counts[name] += n
	}
	for name, list := range p.Lists {
		r.Lists[name] = append(r.Lists[name], list...)
	}
	for name, data := range p.Times {
		s, err := decodeSamples(data)
		if err != nil {
			return fmt.Errorf("times %q: %w", name, err)
		}
		if r.Times[name] == nil {
			r.Times[name] = newSamples()
		}
		r.Times[name].merge(s)
	}
	return nil
}

// figures returns the figures that every run has.
func (r *Result) figures() Figures {
	f := Figures{
		"ops":           float64(r.Ops),
		"errors":        float64(r.Errors),
		"seconds":       r.Seconds,
		"client_cpu_ms": millis(r.client.CPU),
		"redis_cpu_ms":  millis(r.redis.cpu),
		"commands":      r.redis.commands,
		"foreign_cpu":   r.foreignCPU(),
	}
	maps.Copy(f, r.Counts)
	for name, s := range r.Times {
		if name != "" {
			name += "_"
		}
		if s.Count() == 0 {
			continue
		}
		f[name+"p50_us"] = micros(s.Quantile(0.5))
		f[name+"p99_us"] = micros(s.Quantile(0.99))
		f[name+"mean_us"] = micros(s.Mean())
		f[name+"max_us"] = micros(s.Max())
	}
	if r.Ops == 0 || r.Seconds == 0 {
		return f
	}
	ops := float64(r.Ops)
	f["ops_per_s"] = ops / r.Seconds
	f["us_per_op"] = 1e6 * r.Seconds / ops
	f["ns_per_op"] = 1e9 * r.Seconds / ops
	f["allocs_per_op"] = float64(r.client.Allocs) / ops
	f["bytes_per_op"] = float64(r.client.Bytes) / ops
	f["client_cpu_us_per_op"] = micros(r.client.CPU) / ops
	f["redis_cpu_us_per_op"] = micros(r.redis.cpu) / ops
	f["commands_per_op"] = r.redis.commands / ops
	f["redis_reads_per_op"] = r.redis.reads / ops
	f["redis_in_bytes_per_op"] = r.redis.in / ops
	f["redis_out_bytes_per_op"] = r.redis.out / ops
	return f
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
