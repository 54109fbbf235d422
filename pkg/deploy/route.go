package deploy

import (
	"fmt"
	"hash/fnv"
)

// Route returns the digest of the version that a request goes to; empty if there is none. The key of the request or of
// its session decides whether it goes to a canary, so that all routers decide the same way and what belongs together
// stays together. open
// reports whether this router has a pipeline of a digest open.
func (d *Deployment) Route(key string, open func(digest string) bool) string {
	if d.Next != nil && d.Next.Canary && open(d.Next.Digest) {
		// Without an open pipeline of the live version the canary, which has been probed, is better than nothing.
		if d.Live == nil || !open(d.Live.Digest) || drawn(d.Name+"\x00"+key, d.Share()) {
			return d.Next.Digest
		}
	}
	if d.Live == nil {
		return ""
	}
	return d.Live.Digest
}

// drawn reports whether a key is among a share of all keys.
func drawn(key string, share float64) bool {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // never fails
	v := h.Sum64()
	// The upper bits of FNV depend little on the last bytes of the key; a multiplication mixes them.
	v ^= v >> 32
	v *= 0x9e3779b97f4a7c15
	return float64(v>>11)/(1<<53) < share
}

// Bounds of what a Judge calls a failure.
const (
	leastFailures = 3    // of a canary, before it is rolled back
	moreFailures  = 0.05 // share of requests by which a canary may fail more often than the live version
	maxPrompts    = 4096 // of failed requests that are remembered for each version
)

// Judge compares how often requests fail on the versions of a deployment. Each router has one for what it sees itself.
type Judge struct {
	counts map[string]*tally // by digest
}

type tally struct {
	ended, failed int
	prompts       map[uint64]bool // of failed requests
}

// NewJudge returns a Judge that has seen nothing.
func NewJudge() *Judge { return &Judge{counts: map[string]*tally{}} }

// Ended counts a request. failed says that the version or its pipelines may be to blame, not the client. A client may
// repeat a request that is itself to blame, so of the failures with the same number for the prompt only the first one
// counts. Those with 0 count always.
func (j *Judge) Ended(digest string, failed bool, prompt uint64) {
	t := j.counts[digest]
	if t == nil {
		t = &tally{prompts: map[uint64]bool{}}
		j.counts[digest] = t
	}
	if failed && prompt != 0 {
		if t.prompts[prompt] {
			return
		}
		if len(t.prompts) < maxPrompts {
			t.prompts[prompt] = true
		}
	}
	t.ended++
	if failed {
		t.failed++
	}
}

// Forget drops the counts of digests that are not to be compared any more, and those of both versions when a canary
// begins.
func (j *Judge) Forget(keep func(digest string) bool) {
	for digest := range j.counts {
		if !keep(digest) {
			delete(j.counts, digest)
		}
	}
}

// Verdict returns why the canary of a deployment is to be rolled back; empty if it is not.
func (j *Judge) Verdict(d *Deployment) string {
	if d.Next == nil || !d.Next.Canary || d.Live == nil {
		return ""
	}
	next, live := j.counts[d.Next.Digest], j.counts[d.Live.Digest]
	if next == nil || next.failed < leastFailures {
		return ""
	}
	usual := 0.0
	if live != nil {
		usual = float64(live.failed) / float64(live.ended)
	}
	if float64(next.failed)/float64(next.ended) < usual+moreFailures {
		return ""
	}
	return fmt.Sprintf("%d of its %d requests have failed, and %.3g %% of those of the live version", next.failed,
		next.ended, 100*usual)
}
