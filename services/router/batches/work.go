package batches

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// attempt is a request that is to be run. It has no body: that is read from the file when the request has a slot.
type attempt struct {
	place   batch.Place // not set for a request that has not been read yet
	due     time.Time
	backoff time.Duration // before its next try, unless the refusal names more
	counted bool          // its owner's budget of requests has paid for it
}

// work is what is to be done for a batch: the requests of the file that have not been read, and those that were
// refused for now. It is safe for concurrent use.
type work struct {
	most    int           // requests that run or wait for another try, so that a full router is not asked by all
	changed chan struct{} // has a token after a change

	mu     sync.Mutex
	unread int       // requests of the file that have not been read; so the end is known without a slot
	open   int       // requests that run or wait for another try
	later  []attempt // those that wait for another try
}

func newWork(most, unread int) *work {
	return &work{most: most, unread: unread, changed: make(chan struct{}, 1)}
}

// next waits for the next request that can run, and calls rest before it waits. It returns io.EOF when every request
// has ended. The caller calls begin or whole, and ended after begin.
func (w *work) next(ctx context.Context, rest func()) (attempt, error) {
	for {
		a, wait, err := w.due(time.Now())
		if err != nil || wait == 0 {
			return a, err
		}
		rest()
		timer := time.NewTimer(wait)
		select {
		case <-w.changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return attempt{}, ctx.Err()
		}
		timer.Stop()
	}
}

// due returns a request that can run now, or how long to wait for one unless something changes.
func (w *work) due(now time.Time) (a attempt, wait time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := -1
	for i := range w.later {
		if first < 0 || w.later[i].due.Before(w.later[first].due) {
			first = i
		}
	}
	switch {
	case first >= 0 && !w.later[first].due.After(now):
		a = w.later[first]
		last := len(w.later) - 1
		w.later[first] = w.later[last]
		w.later = w.later[:last]
		w.open--
		return a, 0, nil
	case w.unread > 0 && w.open < w.most:
		return attempt{backoff: retryLeast}, 0, nil
	case w.unread == 0 && w.open == 0:
		return attempt{}, 0, io.EOF
	case first >= 0:
		return attempt{}, w.later[first].due.Sub(now), nil
	}
	return attempt{}, time.Hour, nil
}

// begin says that a request of next runs, which has been read for the first time or not.
func (w *work) begin(first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open++
	if first {
		w.unread--
	}
}

// ended says that a request runs no more, and when to try it again; nil for never.
func (w *work) ended(again *attempt) {
	w.mu.Lock()
	if again == nil {
		w.open--
	} else {
		w.later = append(w.later, *again)
	}
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// input reads the requests of a batch from its file, one at a time.
type input struct {
	f        *os.File
	lines    *batch.Lines
	endpoint string
	results  *results
}

// openInput opens the input file. Reading ends with ctx.
func (s *Service) openInput(ctx context.Context, j *job, results *results) (*input, error) {
	b := j.now().Batch
	f, err := os.Open(s.store.content(b.InputFileID))
	if err != nil {
		return nil, storeError(err)
	}
	return &input{f, batch.NewLines(&reader{ctx, f}), b.Endpoint, results}, nil
}

func (in *input) close() { _ = in.f.Close() } // it was only read

// next returns the next request that has no result yet, and io.EOF at the end. Only one goroutine may call it.
func (in *input) next() (batch.Place, batch.Line, error) {
	for {
		place, text, err := in.lines.Next()
		if errors.Is(err, io.EOF) {
			return place, batch.Line{}, io.EOF
		}
		var line batch.Line
		if err == nil {
			line, err = batch.ParseLine(text, in.endpoint)
		}
		if err != nil {
			return place, line, fault.Wrap(fault.CodeOf(err), err, "read request of line %d", place.Number)
		}
		if !in.results.has(line.CustomID) {
			return place, line, nil
		}
	}
}

// again reads a request that next has returned before.
func (in *input) again(p batch.Place) (batch.Line, error) {
	text := make([]byte, p.Bytes)
	if _, err := in.f.ReadAt(text, p.At); err != nil && !errors.Is(err, io.EOF) {
		return batch.Line{}, storeError(err)
	}
	line, err := batch.ParseLine(text, in.endpoint)
	if err != nil { // it was right before
		return line, fault.Wrap(fault.DataLoss, err, "read request of line %d again", p.Number)
	}
	return line, nil
}
