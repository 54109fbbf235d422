package batches

import (
	"cmp"
	"os"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// addJob stores a new batch. A batch that has ended makes room for it: the oldest of the tenant or, if the tenant has
// none and the router is full, that of all. Its files stay.
func (s *store) addJob(r record) (*job, error) {
	j := &job{record: r}
	s.mu.Lock()
	if f := s.files[r.Batch.InputFileID]; f == nil || f.Tenant != r.Tenant {
		s.mu.Unlock()
		return nil, &fault.Error{Code: fault.NotFound, Field: "input_file_id", Reason: "FILE_NOT_FOUND",
			Msg: "there is no file " + r.Batch.InputFileID}
	}
	own, active, all := s.countJobs(r.Tenant)
	var old *job
	full := len(s.jobs) >= s.most
	if own >= s.limits.Kept || full {
		old = s.oldest(func(tenant string) bool { return tenant == r.Tenant })
	}
	if old == nil && full { // otherwise tenants with many batches would keep out all others for ever
		old = s.oldest(func(string) bool { return true })
	}
	var err error
	switch {
	case active >= s.limits.Active:
		err = fault.New(fault.Exhausted, "create batch: %d batches have not ended, of at most %d", active,
			s.limits.Active).Because("BATCH_LIMIT_EXCEEDED").After(retryMost)
	case all >= maxActive:
		err = fault.New(fault.Exhausted, "create batch: the router has %d batches that have not ended, of at most %d",
			all, maxActive).Because("BATCH_LIMIT_EXCEEDED").After(retryMost)
	case old == nil && full:
		err = fault.New(fault.Exhausted, "create batch: the router has %d batches", len(s.jobs)).
			Because("BATCH_LIMIT_EXCEEDED")
	}
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	s.jobs[r.Batch.ID] = j // now its input file cannot be deleted
	if old != nil {
		delete(s.jobs, old.now().Batch.ID)
	}
	s.mu.Unlock()
	if old != nil {
		err = os.Remove(s.path("batches", old.now().Batch.ID))
	}
	if err == nil {
		err = s.writeInfo("batches", r.Batch.ID, r)
	}
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.jobs, r.Batch.ID)
		return nil, storeError(err)
	}
	return j, nil
}

// countJobs counts the batches of a tenant, those of them that have not ended, and those of all that have not. The
// caller holds mu.
func (s *store) countJobs(tenant string) (own, active, all int) {
	for _, j := range s.jobs {
		r := j.now()
		open := !r.Batch.Status.Ended()
		if open {
			all++
		}
		if r.Tenant == tenant {
			if own++; open {
				active++
			}
		}
	}
	return own, active, all
}

// oldest returns the oldest batch of some tenants that has ended, or nil. The caller holds mu.
func (s *store) oldest(of func(tenant string) bool) (old *job) {
	for _, j := range s.jobs {
		r := j.now()
		if of(r.Tenant) && r.Batch.Status.Ended() && (old == nil || newer(old.now(), r) < 0) {
			old = j
		}
	}
	return old
}

// newer orders batches, the newest first.
func newer(a, b record) int {
	return cmp.Or(cmp.Compare(b.Batch.CreatedAt, a.Batch.CreatedAt), cmp.Compare(a.Batch.ID, b.Batch.ID))
}

// job returns a batch of a tenant.
func (s *store) job(tenant, id string) (*job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil && j.now().Tenant == tenant {
		return j, nil
	}
	return nil, fault.New(fault.NotFound, "find batch %.80q: there is none", id).Because("BATCH_NOT_FOUND")
}

// listJobs returns the batches of a tenant, the newest first.
func (s *store) listJobs(tenant string) []record {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []record
	for _, j := range s.jobs {
		if r := j.now(); r.Tenant == tenant {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, newer)
	return out
}

// open returns the batches that have not ended, the oldest first.
func (s *store) openJobs() []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*job
	for _, j := range s.jobs {
		if !j.now().Batch.Status.Ended() {
			out = append(out, j)
		}
	}
	slices.SortFunc(out, func(a, b *job) int { return newer(b.now(), a.now()) })
	return out
}

// change changes a batch and stores it. If it cannot be stored, the batch stays as it was.
func (s *store) change(j *job, change func(*batch.Batch) error) error {
	j.writing.Lock()
	defer j.writing.Unlock()
	next := j.now()
	before := next.Batch.Counts
	if err := change(&next.Batch); err != nil {
		return err
	}
	if err := s.writeInfo("batches", next.Batch.ID, next); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if next.Batch.Counts == before { // requests may have ended meanwhile
		next.Batch.Counts = j.record.Batch.Counts
	}
	j.record = next
	return nil
}

// count counts a request that has ended.
func (j *job) count(ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.record.Batch.Count(ok)
}
