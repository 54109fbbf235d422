package batches

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

const (
	filePrefix  = "file-"
	batchPrefix = "batch_"
	infoSuffix  = ".json"
)

// The purposes of files.
const (
	purposeInput  = "batch"
	purposeOutput = "batch_output"
)

// file is what is known of a file.
type file struct {
	ID      string `json:"id"`
	Tenant  string `json:"tenant"`
	Name    string `json:"name"`
	Purpose string `json:"purpose"`
	Bytes   int64  `json:"bytes"`
	Created int64  `json:"created"` // in seconds
}

// record is a batch as it is stored.
type record struct {
	Batch  batch.Batch `json:"batch"`
	Tenant string      `json:"tenant"`
	Owner  *auth.Grant `json:"owner"` // nil if nobody had to authenticate
	// Output and Errors are the ids of the files of results, which exist for clients once the batch has ended.
	Output string `json:"output"`
	Errors string `json:"errors"`
}

// job is a batch of this process.
type job struct {
	writing sync.Mutex   // held while the record is changed and written
	running atomic.Int64 // requests that run

	mu     sync.Mutex
	record record
	stop   func(cause error) // ends its work; nil while it does not run
}

// now returns the record as it is.
func (j *job) now() record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.record
}

// room is what files take.
type room struct {
	files int
	bytes int64
}

// store is the folder with its index. It is safe for concurrent use.
type store struct {
	dir    string
	limits Limits
	most   int // batches of all tenants
	log    *slog.Logger

	opening sync.Mutex
	lock    *flock.Flock // nil before the folder is open

	mu     sync.Mutex
	files  map[string]*file // by id; none is changed
	jobs   map[string]*job  // by id
	used   room
	tenant map[string]room
	// uploads counts the uploads of each tenant.
	uploads map[string]int
}

func newStore(dir string, limits Limits, log *slog.Logger) *store {
	return &store{
		dir: dir, limits: limits, most: maxBatches, log: log, files: map[string]*file{}, jobs: map[string]*job{},
		tenant: map[string]room{}, uploads: map[string]int{},
	}
}

func (s *store) content(id string) string { return filepath.Join(s.dir, "files", id) }

func (s *store) path(folder, id string) string { return filepath.Join(s.dir, folder, id+infoSuffix) }

func storeError(err error) error { return fault.Wrap(fault.Unavailable, err, "store batches") }

// errNoFolder refuses calls of a router without a folder.
var errNoFolder = fault.New(fault.FailedPrecondition,
	"store batches: the router has no folder for them: start it with --batch-dir").Because("NO_BATCH_FOLDER")

// exists reports whether there is a folder to be opened.
func (s *store) exists() bool {
	if s.dir == "" {
		return false
	}
	info, err := os.Stat(s.dir)
	return err == nil && info.IsDir()
}

// open makes the folder, locks it and reads what is there, unless that was done before.
func (s *store) open() (first bool, err error) {
	if s.dir == "" {
		return false, errNoFolder
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.lock != nil {
		return false, nil
	}
	for _, folder := range []string{"files", "batches"} {
		if err := os.MkdirAll(filepath.Join(s.dir, folder), 0o700); err != nil {
			return false, storeError(err)
		}
	}
	lock := flock.New(filepath.Join(s.dir, "lock"), flock.SetPermissions(0o600))
	switch ok, err := lock.TryLock(); {
	case err != nil:
		return false, errors.Join(storeError(err), lock.Close())
	case !ok:
		return false, errors.Join(fault.New(fault.FailedPrecondition, "store batches: another process has the folder "+
			"of --batch-dir: give each router one of its own").Because("BATCH_FOLDER_IN_USE"), lock.Close())
	}
	if err := s.load(); err != nil {
		return false, errors.Join(err, lock.Close())
	}
	s.lock = lock
	return true, nil
}

func (s *store) close() error {
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// writeInfo writes what is known of a file or batch.
func (s *store) writeInfo(folder, id string, v any) error {
	err := weights.WriteFile(s.path(folder, id), func(w io.Writer) error { return json.NewEncoder(w).Encode(v) })
	if err != nil {
		return storeError(err)
	}
	return nil
}

// add changes what a tenant's files take. The caller holds mu.
func (s *store) add(tenant string, r room) {
	s.used.files, s.used.bytes = s.used.files+r.files, s.used.bytes+r.bytes
	next := room{s.tenant[tenant].files + r.files, s.tenant[tenant].bytes + r.bytes}
	if s.tenant[tenant] = next; next == (room{}) {
		delete(s.tenant, tenant)
	}
}

// take reserves room for a tenant, or says what is full. A tenant has at most half of the bytes, so that one cannot
// take what all the others have.
func (s *store) take(tenant string, r room) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.tenant[tenant]
	full := func(format string, args ...any) error {
		return fault.New(fault.Exhausted, "store file: "+format+": delete some", args...).Because("FILE_LIMIT_EXCEEDED")
	}
	switch {
	case r.files > 0 && own.files+r.files > s.limits.Files:
		return full("there are %d files, of at most %d", own.files, s.limits.Files)
	case r.files > 0 && s.used.files+r.files > maxFiles:
		return full("the router has %d files, of at most %d", s.used.files, maxFiles)
	case r.bytes > 0 && own.bytes+r.bytes > s.limits.Disk/2:
		return full("the files have %d bytes, of at most %d", own.bytes, s.limits.Disk/2)
	case r.bytes > 0 && s.used.bytes+r.bytes > s.limits.Disk:
		return full("the files of the router have %d bytes, of at most %d", s.used.bytes, s.limits.Disk)
	}
	s.add(tenant, r)
	return nil
}

// bytes returns what the files of all tenants take.
func (s *store) bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used.bytes
}

// give gives room back.
func (s *store) give(tenant string, r room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(tenant, room{-r.files, -r.bytes})
}

// beginUpload counts an upload of a tenant, unless too many are under way. A client may send slowly, and the uploads of
// one tenant must not keep those of the others waiting. The caller calls end.
func (s *store) beginUpload(tenant string) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := 0
	for _, n := range s.uploads {
		all += n
	}
	if own := s.uploads[tenant]; all >= maxUploads || own >= maxUploads/4 {
		return nil, fault.New(fault.Exhausted, "store file: of at most %d uploads %d are under way, and %d of yours, "+
			"of at most %d", maxUploads, all, own, maxUploads/4).After(time.Second).Because("RATE_LIMIT_EXCEEDED")
	}
	s.uploads[tenant]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.uploads[tenant]--; s.uploads[tenant] == 0 {
			delete(s.uploads, tenant)
		}
	}, nil
}

// putFile stores what is known of a file whose content is complete and whose room is taken.
func (s *store) putFile(f *file) error {
	if err := s.writeInfo("files", f.ID, f); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[f.ID] = f
	return nil
}

// file returns a file of a tenant.
func (s *store) file(tenant, id string) (*file, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[id]; f != nil && f.Tenant == tenant {
		return f, nil
	}
	return nil, fault.New(fault.NotFound, "find file %.80q: there is none", id).Because("FILE_NOT_FOUND")
}

// listFiles returns the files of a tenant, the newest first.
func (s *store) listFiles(tenant string) []*file {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*file
	for _, f := range s.files {
		if f.Tenant == tenant {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b *file) int {
		return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// removeFile deletes a file of a tenant that no batch uses.
func (s *store) removeFile(tenant, id string) error {
	f, err := s.file(tenant, id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for _, j := range s.jobs {
		r := j.now()
		if !r.Batch.Status.Ended() && slices.Contains([]string{r.Batch.InputFileID, r.Output, r.Errors}, id) {
			s.mu.Unlock()
			return fault.New(fault.FailedPrecondition, "delete file %s: batch %s uses it until it has ended", id,
				r.Batch.ID).Because("FILE_IN_USE")
		}
	}
	if s.files[id] != f {
		s.mu.Unlock()
		return fault.New(fault.NotFound, "find file %.80q: there is none", id).Because("FILE_NOT_FOUND")
	}
	delete(s.files, id)
	s.add(tenant, room{-1, -f.Bytes})
	s.mu.Unlock()
	err = os.Remove(s.path("files", id)) // from here on nothing speaks of the content
	if content := os.Remove(s.content(id)); !errors.Is(content, fs.ErrNotExist) {
		err = errors.Join(err, content)
	}
	if err != nil {
		return storeError(err)
	}
	return nil
}
