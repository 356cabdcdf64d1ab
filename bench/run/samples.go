package run

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// longest is the longest duration; longer ones count as this.
const longest = 10 * time.Minute

// Samples are durations, to about a hundredth of each.
type Samples struct{ h *hdrhistogram.Histogram }

func newSamples() *Samples {
	return &Samples{hdrhistogram.New(1, int64(longest), 2)}
}

// Add adds a duration.
func (s *Samples) Add(d time.Duration) {
	_ = s.h.RecordValue(int64(min(max(d, 1), longest))) // the error is of a value out of these bounds
}

func (s *Samples) merge(other *Samples) { s.h.Merge(other.h) }

func (s *Samples) encode() ([]byte, error) {
	return s.h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
}

func decodeSamples(data []byte) (*Samples, error) {
	h, err := hdrhistogram.Decode(data)
	return &Samples{h}, err
}

// Count returns how many durations there are.
func (s *Samples) Count() int64 { return s.h.TotalCount() }

// Quantile returns the duration that a share q of all durations do not exceed.
func (s *Samples) Quantile(q float64) time.Duration {
	return time.Duration(s.h.ValueAtQuantile(100 * q))
}

// Mean returns the mean.
func (s *Samples) Mean() time.Duration { return time.Duration(s.h.Mean()) }

// Max returns the longest.
func (s *Samples) Max() time.Duration { return time.Duration(s.h.Max()) }
