package batches

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
