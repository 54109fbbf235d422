package batches

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// results are the output file and the error file of a batch while it runs. It is safe for concurrent use.
type results struct {
	store *store
	job   *job

	mu     sync.Mutex
	files  [2]resultFile // of requests that have succeeded, and of the others
	done   map[batch.Key]bool
	broken error // why nothing can be added any more
}

type resultFile struct {
	id   string
	f    *os.File
	size int64
}

// openResults opens the files of a batch, finds out which requests have ended and counts them.
func openResults(s *store, j *job) (*results, error) {
	r := j.now()
	out := &results{store: s, job: j, done: map[batch.Key]bool{}, files: [2]resultFile{{id: r.Output}, {id: r.Errors}}}
	var ended [2]int
	for i := range out.files {
		if err := out.files[i].open(out, &ended[i]); err != nil {
			return nil, errors.Join(err, out.close())
		}
	}
	if err := syncDir(filepath.Join(s.dir, "files")); err != nil {
		return nil, errors.Join(storeError(err), out.close())
	}
	if n := ended[0] + ended[1]; n != len(out.done) || n > r.Batch.Counts.Total {
		err := fault.New(fault.DataLoss, "read the results of batch %s: %d of %d requests, %d of them once", r.Batch.ID,
			n, r.Batch.Counts.Total, len(out.done))
		return nil, errors.Join(err, out.close())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.record.Batch.Counts.Completed, j.record.Batch.Counts.Failed = ended[0], ended[1]
	return out, nil
}

// open opens a file and cuts off a result that is not complete.
func (f *resultFile) open(r *results, ended *int) (err error) {
	f.f, err = os.OpenFile(r.store.content(f.id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return storeError(err)
	}
	f.size, err = batch.ReadResults(f.f, func(customID string) {
		r.done[batch.KeyOf(customID)] = true
		*ended++
	})
	if err != nil {
		return fault.Wrap(fault.DataLoss, err, "read file %s", f.id)
	}
	info, err := f.f.Stat()
	if err == nil && info.Size() > f.size {
		if err = f.f.Truncate(f.size); err == nil {
			r.store.give(r.job.now().Tenant, room{bytes: info.Size() - f.size})
		}
	}
	if err == nil {
		_, err = f.f.Seek(f.size, io.SeekStart)
	}
	if err != nil {
		return storeError(err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// has reports whether a request has ended.
func (r *results) has(customID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done[batch.KeyOf(customID)]
}

// add stores a result and counts it. If ran, it is on the disk before it counts, so that the request does not run again
// after a restart. Otherwise the request has not run, and publish syncs the file.
func (r *results) add(result *batch.Result, ran bool) error {
	line, err := result.Line()
	if err == nil && len(line) > batch.MaxResult {
		err = fmt.Errorf("write the result of %q: it has more than %d bytes", result.CustomID, batch.MaxResult)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "store result")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil || r.done[batch.KeyOf(result.CustomID)] {
		return r.broken
	}
	tenant := r.job.now().Tenant
	if err := r.store.take(tenant, room{bytes: int64(len(line))}); err != nil {
		return err
	}
	f := &r.files[1]
	if result.OK() {
		f = &r.files[0]
	}
	_, err = f.f.WriteAt(line, f.size)
	if err == nil && ran {
		err = f.f.Sync()
	}
	if err != nil { // a part may be in the file, which the next result would follow
		r.store.give(tenant, room{bytes: int64(len(line))})
		r.broken = errors.Join(storeError(err), f.f.Truncate(f.size))
		return r.broken
	}
	f.size += int64(len(line))
	r.done[batch.KeyOf(result.CustomID)] = true
	r.job.count(result.OK())
	return nil
}

// close closes the files.
func (r *results) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for i := range r.files {
		if f := &r.files[i]; f.f != nil {
			errs = append(errs, f.f.Close())
			f.f = nil
		}
	}
	if err := errors.Join(errs...); err != nil {
		return storeError(err)
	}
	return nil
}

// publish makes the files exist for clients, and returns their ids. A file without results is removed.
func (r *results) publish() (output, failed *string, err error) {
	for i := range r.files {
		if err := r.files[i].f.Sync(); err != nil {
			return nil, nil, errors.Join(storeError(err), r.close())
		}
	}
	if err := r.close(); err != nil {
		return nil, nil, err
	}
	return r.store.publishResults(r.job.now())
}

// publishResults is publish for the files of a batch as they are, which nobody writes.
func (s *store) publishResults(r record) (output, failed *string, err error) {
	for i, to := range []**string{&output, &failed} {
		id, name := r.Output, r.Batch.ID+"_output.jsonl"
		if i == 1 {
			id, name = r.Errors, r.Batch.ID+"_error.jsonl"
		}
		switch info, err := os.Stat(s.content(id)); {
		case errors.Is(err, fs.ErrNotExist): // it was not begun
		case err != nil:
			return output, failed, storeError(err)
		case info.Size() == 0:
			if err := os.Remove(s.content(id)); err != nil {
				return output, failed, storeError(err)
			}
		default:
			if err := s.publish(&file{ID: id, Tenant: r.Tenant, Name: name, Purpose: purposeOutput, Bytes: info.Size(),
				Created: time.Now().Unix()}); err != nil {
				return output, failed, err
			}
			*to = &id
		}
	}
	return output, failed, nil
}

// publish stores what is known of a file of results, whose bytes count already. It is stored even if its tenant has too
// many files: the next upload waits.
func (s *store) publish(f *file) error {
	s.mu.Lock()
	if s.files[f.ID] == nil {
		s.add(f.Tenant, room{files: 1})
	}
	s.mu.Unlock()
	return s.putFile(f)
}
