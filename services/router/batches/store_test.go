package batches

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	anID    = "0123456789abcdef0123456789abcdef"
	aRecord = `{"batch":{"id":"batch_` + anID + `","endpoint":"/v1/embeddings","input_file_id":"file-` + anID +
		`","status":"in_progress","request_counts":{"total":2,"completed":1,"failed":1}},"output":"file-` + anID +
		`","errors":"file-` + anID + `"}`
	aFile = `{"id":"file-` + anID + `","purpose":"batch","bytes":3}`
)

func TestParseRecord_WrongOnesAreLeftOut(t *testing.T) {
	if r, err := parseRecord([]byte(aRecord), "batch_"+anID); err != nil || r.Batch.Counts.Total != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if f, err := parseFile([]byte(aFile), "file-"+anID); err != nil || f.Bytes != 3 {
		t.Errorf("%+v, %v", f, err)
	}
	for _, c := range [][2]string{{"in_progress", "odd"}, {"/v1/embeddings", "/v1/models"}, {`"total":2`, `"total":1`},
		{`"output":"file-`, `"output":"../file-`}, {`"errors":"file-`, `"errors":"`},
		{`"id":"batch_0`, `"id":"batch_1`},
		{`"input_file_id":"file-`, `"input_file_id":"/`}, {`{"batch"`, `["batch"`}} {
		if _, err := parseRecord([]byte(strings.Replace(aRecord, c[0], c[1], 1)), "batch_"+anID); err == nil {
			t.Errorf("a record with %q is read", c[1])
		}
	}
	for _, c := range [][2]string{{`file-0`, `file-1`}, {`"batch"`, `"else"`}, {`3`, `"3"`}} {
		if _, err := parseFile([]byte(strings.Replace(aFile, c[0], c[1], 1)), "file-"+anID); err == nil {
			t.Errorf("a file with %q is read", c[1])
		}
	}
}

func TestFileName_IsOnlyShown(t *testing.T) {
	for text, want := range map[string]string{"a.jsonl": "a.jsonl", `C:\x\a b.jsonl`: "a b.jsonl", "../../etc": "etc",
		"": "file.jsonl", "/": "file.jsonl", "..": "..", "a\r\nb\u202e": "ab",
		strings.Repeat("é", 200): strings.Repeat("é", 127)} {
		if got := fileName(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

// newTestStore returns a store with an open folder.
func newTestStore(t *testing.T) *store {
	t.Helper()
	s := newStore(t.TempDir(), Limits{}.withDefaults(), slog.New(slog.DiscardHandler))
	if _, err := s.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	return s
}

// newTestJob stores a batch of a tenant, made at a time, of a file that exists.
func newTestJob(t *testing.T, s *store, tenant string, made int64) *job {
	t.Helper()
	f := &file{ID: newID(filePrefix), Tenant: tenant, Purpose: purposeInput}
	s.files[f.ID] = f
	j, err := s.addJob(record{Tenant: tenant, Batch: *batch.New(newID(batchPrefix), "/v1/embeddings", f.ID, nil,
		time.Unix(made, 0))})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestStore_RemovesOnlyWhatItHasLeftBehind(t *testing.T) {
	dir := t.TempDir()
	kept := []string{"files/report.pdf", "files/notes", "files/.hidden", "batches/x.txt", "files/file-1",
		"files/.file-x.json.1"}
	gone := []string{"files/file-" + anID, "files/.file-" + anID + ".json.123", "batches/.batch_" + anID + ".json.7"}
	for _, folder := range []string{"files", "batches"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range append(kept, gone...) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newStore(dir, Limits{}.withDefaults(), slog.New(slog.DiscardHandler))
	if _, err := s.open(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	for _, name := range kept {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("a file of somebody else is gone: %v", err)
		}
	}
	for _, name := range gone {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

func TestStore_ATenantCannotKeepOthersFromMakingBatches(t *testing.T) {
	s := newTestStore(t)
	s.most = 2
	old, young := newTestJob(t, s, "a", 1), newTestJob(t, s, "a", 2)
	for _, j := range []*job{old, young} {
		if err := s.change(j, func(b *batch.Batch) error { return b.Expire(nil, nil, time.Now()) }); err != nil {
			t.Fatal(err)
		}
	}
	newTestJob(t, s, "b", 3)
	if of := s.listJobs("a"); len(of) != 1 || of[0].Batch.ID != young.now().Batch.ID {
		t.Errorf("the batches of the other tenant are %+v, want the younger one", of)
	}
	if _, err := os.Stat(s.path("batches", old.now().Batch.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the oldest batch is still stored: %v", err)
	}
}

func TestStore_ATenantCannotTakeAllUploads(t *testing.T) {
	s := newTestStore(t)
	var ends []func()
	for {
		end, err := s.beginUpload("slow")
		if err != nil {
			if fault.CodeOf(err) != fault.Exhausted {
				t.Errorf("got %v", err)
			}
			break
		}
		ends = append(ends, end)
	}
	if len(ends) != maxUploads/4 {
		t.Errorf("a tenant has %d uploads", len(ends))
	}
	for _, tenant := range []string{"a", "b", "c"} {
		for range maxUploads / 4 {
			end, err := s.beginUpload(tenant)
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, end)
		}
	}
	if _, err := s.beginUpload("d"); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("got %v for more uploads than all tenants may have", err)
	}
	for _, end := range ends {
		end()
	}
	if len(s.uploads) != 0 {
		t.Errorf("uploads are left over: %v", s.uploads)
	}
}

func TestService_AFailureNamesNoPath(t *testing.T) {
	s := New(Options{Dir: t.TempDir()})
	if _, err := s.store.open(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.store.close() }()
	j := newTestJob(t, s.store, "", 1)
	cause := &fs.PathError{Op: "write", Path: s.store.dir, Err: errors.New("no space left")}
	if err := s.fail(j, fault.Wrap(fault.Exhausted, cause, "store result"), nil, nil); err != nil {
		t.Fatal(err)
	}
	got := j.now().Batch.Errors.Data[0]
	if got.Code != "batch_stopped" || got.Message != "store result" {
		t.Errorf("a client sees %+v", got)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(aRecord), "batch_"+anID)
	f.Add([]byte(aFile), "file-"+anID)
	f.Fuzz(func(t *testing.T, text []byte, id string) {
		if r, err := parseRecord(text, id); err == nil && (!isID(id, batchPrefix) || r.Batch.Check() != nil) {
			t.Errorf("%q of %q is read", text, id)
		}
		if file, err := parseFile(text, id); err == nil && (!isID(id, filePrefix) || file.ID != id) {
			t.Errorf("%q of %q is read", text, id)
		}
	})
}

func FuzzUpload(f *testing.F) {
	f.Add("--x\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--x\r\nContent-Disposition: "+
		"form-data; name=\"file\"; filename=\"a\"\r\n\r\n{}\r\n--x--\r\n", "multipart/form-data; boundary=x")
	f.Add("", "text/plain")
	dir := f.TempDir()
	s := New(Options{Dir: dir, Limits: Limits{Files: 1 << 15}, Fail: func(w http.ResponseWriter, err error) {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}})
	f.Cleanup(func() { _ = s.store.close() })
	f.Fuzz(func(t *testing.T, body, kind string) {
		r := httptest.NewRequest(http.MethodPost, "/v1/files", strings.NewReader(body))
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		s.handle(s.upload)(w, r)
		stored := s.store.listFiles("")
		if (w.Code == http.StatusOK) != (len(stored) == 1) {
			t.Errorf("%q %q: %d with %d files", kind, body, w.Code, len(stored))
		}
		for _, one := range stored {
			if err := s.store.removeFile("", one.ID); err != nil {
				t.Fatal(err)
			}
		}
		s.store.mu.Lock()
		defer s.store.mu.Unlock()
		if s.store.used != (room{}) {
			t.Errorf("%q %q: %+v is taken", kind, body, s.store.used)
		}
	})
}
