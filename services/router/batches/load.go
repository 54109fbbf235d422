package batches

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const maxInfo = 16 << 20 // bytes of what is known of a file or batch

// load reads the folder. What cannot be read is named in the log and left as it is. Contents that nothing speaks of
// are removed: they are of uploads that did not end and of files that were being deleted. Files with names that this
// package does not make are somebody else's, and stay.
func (s *store) load() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	damaged, known := false, map[string]bool{}
	for _, folder := range []string{"files", "batches"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, folder))
		if err != nil {
			return storeError(err)
		}
		for _, e := range entries {
			id, ok := strings.CutSuffix(e.Name(), infoSuffix)
			if !ok {
				continue
			}
			var err error
			if folder == "files" {
				err = s.loadFile(id, known)
			} else {
				err = s.loadBatch(id, known)
			}
			if err != nil {
				damaged = true
				s.log.Error("read what is stored of batches: it is left out", "folder", folder, "id", id, "error", err)
			}
		}
	}
	if damaged {
		return nil
	}
	for _, folder := range []string{"files", "batches"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, folder))
		if err != nil {
			return storeError(err)
		}
		for _, e := range entries {
			if folder == "files" && isID(e.Name(), filePrefix) && !known[e.Name()] || isTemporary(e.Name()) {
				_ = os.Remove(filepath.Join(s.dir, folder, e.Name())) // it only takes room
			}
		}
	}
	return nil
}

func (s *store) loadFile(id string, known map[string]bool) error {
	text, err := readInfo(s.path("files", id))
	if err != nil {
		return err
	}
	f, err := parseFile(text, id)
	if err != nil {
		return err
	}
	info, err := os.Stat(s.content(id))
	if err != nil {
		return storeError(err)
	}
	f.Bytes = info.Size()
	s.files[id], known[id] = f, true
	s.add(f.Tenant, room{1, f.Bytes})
	return nil
}

func (s *store) loadBatch(id string, known map[string]bool) error {
	text, err := readInfo(s.path("batches", id))
	if err != nil {
		return err
	}
	r, err := parseRecord(text, id)
	if err != nil {
		return err
	}
	s.jobs[id] = &job{record: *r}
	if r.Batch.Status.Ended() {
		return nil
	}
	for _, id := range []string{r.Output, r.Errors} {
		if s.files[id] == nil { // otherwise its room counts already
			if info, err := os.Stat(s.content(id)); err == nil {
				s.add(r.Tenant, room{0, info.Size()})
			}
		}
		known[id] = true
	}
	return nil
}

// readInfo reads a bounded file.
func readInfo(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, storeError(err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxInfo+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, storeError(err)
	}
	if len(text) > maxInfo {
		return nil, fault.New(fault.DataLoss, "read %s: it has more than %d bytes", filepath.Base(path), maxInfo)
	}
	return text, nil
}

// parseFile reads what is known of a file with an id.
func parseFile(text []byte, id string) (*file, error) {
	f := &file{}
	switch err := json.Unmarshal(text, f); {
	case err != nil:
		return nil, fault.Wrap(fault.DataLoss, err, "read file %s", id)
	case f.ID != id || !isID(id, filePrefix):
		return nil, fault.New(fault.DataLoss, "read file %s: its id is %q", id, f.ID)
	case f.Purpose != purposeInput && f.Purpose != purposeOutput:
		return nil, fault.New(fault.DataLoss, "read file %s: its purpose is %q", id, f.Purpose)
	}
	return f, nil
}

// parseRecord reads a batch with an id.
func parseRecord(text []byte, id string) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read batch %s", id)
	}
	if err := r.Batch.Check(); err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read batch %s", id)
	}
	if r.Batch.ID != id || !isID(id, batchPrefix) || !isID(r.Output, filePrefix) || !isID(r.Errors, filePrefix) ||
		!isID(r.Batch.InputFileID, filePrefix) {
		return nil, fault.New(fault.DataLoss, "read batch %s: its id is %q, and its files %q, %q and %q", id,
			r.Batch.ID, r.Batch.InputFileID, r.Output, r.Errors)
	}
	return r, nil
}

// isID reports whether text is an id as newID makes them, which is safe in a path.
func isID(text, prefix string) bool {
	digits, ok := strings.CutPrefix(text, prefix)
	return ok && len(digits) == 32 && strings.Trim(digits, "0123456789abcdef") == ""
}

// isTemporary reports whether writeInfo has begun to write a file with that name, which has another one in the end.
func isTemporary(name string) bool {
	id, _, ok := strings.Cut(strings.TrimPrefix(name, "."), infoSuffix+".")
	return ok && name[0] == '.' && (isID(id, filePrefix) || isID(id, batchPrefix))
}
