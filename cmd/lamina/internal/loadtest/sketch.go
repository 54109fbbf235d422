package loadtest

import (
	"math"
	"time"
)

// The buckets of a sketch grow by 1 %, so that the middle of a bucket is within 0.5 % of its values.
const (
	growth   = 1.01
	smallest = time.Microsecond
	largest  = 24 * time.Hour
)

// buckets is the number of buckets between smallest and largest.
var buckets = 2 + int(math.Log(float64(largest)/float64(smallest))/math.Log(growth))

// sketch holds durations in buckets of exponentially growing width, in bounded memory. Its quantiles
// have a relative error of 0.5 %; count, mean and maximum are exact.
type sketch struct {
	counts []uint64 // allocated by the first add
	count  uint64
	sum    time.Duration
	max    time.Duration
}

func (s *sketch) add(d time.Duration) {
	if s.counts == nil {
		s.counts = make([]uint64, buckets)
	}
	d = max(d, 0)
	s.counts[bucket(d)]++
	s.count++
	s.sum += d
	s.max = max(s.max, d)
}

func bucket(d time.Duration) int {
	if d <= smallest {
		return 0
	}
	at := 1 + int(math.Log(float64(d)/float64(smallest))/math.Log(growth))
	return min(at, buckets-1)
}

// quantile returns the value of nearest rank, 0 for an empty sketch.
func (s *sketch) quantile(q float64) time.Duration {
	if s.count == 0 {
		return 0
	}
	rank := uint64(math.Ceil(q * float64(s.count)))
	var seen uint64
	for i, n := range s.counts {
		if seen += n; seen < max(rank, 1) {
			continue
		}
		if i == 0 {
			return min(smallest, s.max)
		}
		middle := float64(smallest) * math.Pow(growth, float64(i)-0.5)
		return min(time.Duration(middle), s.max)
	}
	return s.max
}

// Quantiles sums up durations, in milliseconds.
type Quantiles struct {
	Count uint64  `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

func (s *sketch) quantiles() Quantiles {
	q := Quantiles{
		Count: s.count, P50: millis(s.quantile(0.5)), P90: millis(s.quantile(0.9)), P99: millis(s.quantile(0.99)),
		Max: millis(s.max),
	}
	if s.count > 0 {
		q.Mean = round(float64(s.sum) / float64(s.count) / 1e6)
	}
	return q
}

func millis(d time.Duration) float64 { return round(float64(d) / 1e6) }

// round keeps three decimals, so that JSON stays readable.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }
