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

// Why the work on a batch ends early.
var (
	errCancelled = errors.New("the batch was cancelled")
	errExpired   = errors.New("the time of the batch is over")
)

// Run runs batches until ctx ends: those of the folder that have not ended, and new ones. It joins all of its
// goroutines.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	s.run, s.begun = ctx, time.Now()
	s.mu.Unlock()
	if s.store.exists() {
		if err := s.open(); err != nil { // every call says so, too
			s.Log.WarnContext(ctx, "open the folder of batches", "error", err)
		}
	}
	for _, j := range s.store.openJobs() { // a call may have opened the folder before
		s.start(j)
	}
	<-ctx.Done()
	s.mu.Lock()
	s.run = nil
	s.mu.Unlock()
	s.wg.Wait()
	return s.store.close()
}

// open opens the folder, and goes on with its batches if it was not open before.
func (s *Service) open() error {
	first, err := s.store.open()
	if first {
		for _, j := range s.store.openJobs() {
			s.start(j)
		}
	}
	return err
}

// start begins or goes on with a batch, unless that was done before or the service does not run.
func (s *Service) start(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stop != nil {
		return
	}
	ctx, cancel := context.WithDeadlineCause(s.run, j.record.Batch.Expires(), errExpired)
	ctx, stop := context.WithCancelCause(ctx)
	j.stop = stop
	if j.record.Batch.Status == batch.Cancelling {
		stop(errCancelled)
	}
	running := s.run
	s.wg.Go(func() {
		defer cancel()
		defer stop(nil)
		s.drive(running, ctx, j)
	})
}

// end ends the work on a batch, if it has begun.
func (j *job) end(cause error) {
	j.mu.Lock()
	stop := j.stop
	j.mu.Unlock()
	if stop != nil {
		stop(cause)
	}
}

// drive works on a batch until it has ended or the router stops. ctx ends with running, with the batch's time, and when
// the batch is cancelled.
func (s *Service) drive(running, ctx context.Context, j *job) {
	err := s.work(running, ctx, j)
	if running.Err() != nil {
		return // it goes on after a restart
	}
	b := j.now().Batch
	if err != nil {
		s.Log.ErrorContext(ctx, "work on batch: a restart tries again", "batch", b.ID, "status", b.Status, "error", err)
		return
	}
	s.ended.WithLabelValues(string(b.Status)).Inc()
	s.Log.InfoContext(ctx, "end batch", "batch", b.ID, "status", b.Status, "completed", b.Counts.Completed, "failed",
		b.Counts.Failed)
}

// work checks the input file, runs what has not run and completes the files. A nil error means that the batch has
// ended.
func (s *Service) work(running, ctx context.Context, j *job) error {
	if r := j.now(); r.Batch.InProgressAt == nil {
		switch done, err := s.validate(ctx, j); {
		case err != nil && running.Err() == nil:
			return s.fail(j, err, nil, nil)
		case done || err != nil:
			return err
		}
	}
	results, err := s.openResults(running, ctx, j)
	switch {
	case err != nil && running.Err() != nil:
		return err
	case err != nil: // its results are kept as they are, since nothing else would speak of them after a restart
		output, failed, kept := s.store.publishResults(j.now())
		return s.fail(j, errors.Join(err, kept), output, failed)
	}
	if err = s.workOn(running, ctx, j, results); running.Err() != nil {
		return errors.Join(err, results.close())
	}
	output, failed, kept := results.publish() // what has run is kept for a batch that fails, too
	if err = errors.Join(err, kept); err != nil {
		return s.fail(j, err, output, failed)
	}
	return s.store.change(j, func(b *batch.Batch) error {
		if b.Status == batch.InProgress {
			return b.Expire(output, failed, time.Now())
		}
		return b.End(output, failed, time.Now())
	})
}

// pass waits until a file may be read as a whole, for which long lines are in memory. The caller calls end.
func (s *Service) pass(ctx context.Context) (end func(), err error) {
	select {
	case s.passes <- struct{}{}:
		return func() { <-s.passes }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// openResults opens the files of a batch. While they cannot be read it tries again, until ctx ends.
func (s *Service) openResults(running, ctx context.Context, j *job) (*results, error) {
	for {
		end, err := s.pass(running)
		if err != nil {
			return nil, err
		}
		r, err := openResults(s.store, j)
		end()
		if fault.CodeOf(err) != fault.Unavailable {
			return r, err
		}
		s.Log.WarnContext(ctx, "open the results of a batch: it is tried again", "batch", j.now().Batch.ID, "in",
			retryMost, "error", err)
		timer := time.NewTimer(retryMost)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
	}
}

// fail ends a batch that cannot go on.
func (s *Service) fail(j *job, err error, output, failed *string) error {
	s.Log.Error("batch has failed", "batch", j.now().Batch.ID, "error", err)
	p := &batch.Problem{Code: "internal_error", Message: "the router could not go on with the batch"}
	switch fault.CodeOf(err) { // whose texts are for clients
	case fault.Exhausted, fault.Unauthenticated:
		p = &batch.Problem{Code: "batch_stopped", Message: fault.Public(err)}
	}
	return s.store.change(j, func(b *batch.Batch) error {
		return b.Fail([]*batch.Problem{p}, output, failed, time.Now())
	})
}

// workOn gives every request a result. If it returns nil, the batch is finalizing or cancelling, or its time is over.
func (s *Service) workOn(running, ctx context.Context, j *job, results *results) error {
	if j.now().Batch.Status == batch.Finalizing {
		return nil
	}
	err := s.runAll(ctx, j, results)
	switch cause := context.Cause(ctx); {
	case running.Err() != nil:
		return running.Err()
	case errors.Is(cause, errCancelled):
		return s.skipRest(running, j, results, batch.CodeCancelled,
			"the batch was cancelled before this request had ended")
	case errors.Is(cause, errExpired):
		return s.skipRest(running, j, results, batch.CodeExpired,
			"the completion window was over before this request had ended")
	case cause != nil:
		return cause
	case err != nil:
		return err
	}
	return s.store.change(j, func(b *batch.Batch) error {
		if b.Status == batch.Cancelling { // it was cancelled when the last request had ended
			return nil
		}
		return b.Finalize(time.Now())
	})
}

// validate checks the input file. done says that the batch has ended.
func (s *Service) validate(ctx context.Context, j *job) (done bool, err error) {
	r := j.now()
	f, err := os.Open(s.store.content(r.Batch.InputFileID))
	if err != nil {
		return false, storeError(err)
	}
	defer func() { _ = f.Close() }() // it was only read
	var total int
	var problems []*batch.Problem
	end, err := s.pass(ctx)
	if err == nil {
		total, problems, err = batch.Check(&reader{ctx, f}, r.Batch.Endpoint)
		end()
	}
	cause := context.Cause(ctx)
	switch over := errors.Is(cause, errCancelled) || errors.Is(cause, errExpired); {
	case cause != nil && !over:
		return false, cause
	case cause == nil && err != nil:
		return false, storeError(err)
	}
	err = s.store.change(j, func(b *batch.Batch) error {
		switch now := time.Now(); {
		case b.Status == batch.Cancelling:
			done = true
			return b.End(nil, nil, now)
		case cause != nil:
			done = true
			return b.Expire(nil, nil, now)
		case problems != nil:
			done = true
			return b.Fail(problems, nil, nil, now)
		default:
			return b.Begin(total, now)
		}
	})
	return done && err == nil, err
}

// reader reads until a context ends.
type reader struct {
	ctx  context.Context
	from io.Reader
}

// Read reads unless the context has ended.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.from.Read(p)
}

// runAll runs all requests that have no result yet, and returns when all that it has begun have ended.
func (s *Service) runAll(ctx context.Context, j *job, results *results) error {
	in, err := s.openInput(ctx, j, results)
	if err != nil {
		return err
	}
	defer in.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	r := j.now()
	counts := r.Batch.Counts
	w := newWork(s.Limits.Requests, counts.Total-counts.Completed-counts.Failed)
	slots := s.turns.join(r.Tenant)
	defer slots.leave()
	for {
		a, err := w.next(ctx, slots.rest)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		give, err := slots.take(ctx)
		if err != nil {
			return err
		}
		var line batch.Line
		first := a.place.Number == 0
		if first {
			a.place, line, err = in.next()
		} else {
			line, err = in.again(a.place)
		}
		if errors.Is(err, io.EOF) {
			err = fault.Wrap(fault.DataLoss, err, "read the input file of batch %s: requests are missing", r.Batch.ID)
		}
		if err != nil {
			give()
			return err
		}
		w.begin(first)
		j.running.Add(1)
		wg.Go(func() {
			defer j.running.Add(-1)
			again, err := s.request(ctx, j, results, line, a)
			give()
			if err != nil {
				j.end(err)
			}
			w.ended(again)
		})
	}
}

// skipRest writes that the requests without a result have not run.
func (s *Service) skipRest(ctx context.Context, j *job, results *results, code, message string) error {
	end, err := s.pass(ctx)
	if err != nil {
		return err
	}
	defer end()
	in, err := s.openInput(ctx, j, results)
	if err != nil {
		return err
	}
	defer in.close()
	for {
		_, line, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = results.add(&batch.Result{ID: newID("batch_req_"), CustomID: line.CustomID,
				Error: &batch.Failure{Code: code, Message: message}}, false)
		}
		if err != nil {
			return err
		}
		s.lines.WithLabelValues(endNotRun).Inc()
	}
}
