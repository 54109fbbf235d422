package batches_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/services/router/batches"
)

// TestBatch_GoesOnAfterARestart stops the service in the middle, and leaves half a result behind the last whole one.
func TestBatch_GoesOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, texts := t.TempDir(), []string{"a", "b", "c", "d", "e"}
		hang := func(ctx context.Context, text string) error {
			if text > "c" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		b := newBackend(hang)
		r := newRig(t, dir, b, func(o *batches.Options) { o.Limits.Requests = 2 })
		id := r.create(r.upload(chats(texts...)), chat)
		synctest.Wait()
		_, now := r.call("GET", "/v1/batches/"+id, "")
		if counts := now["request_counts"].(map[string]any); now["status"] != "in_progress" ||
			counts["completed"] != 3.0 || now["output_file_id"] != nil {
			t.Fatalf("in the middle: %v", now)
		}
		r.stop()
		for text, n := range b.ran() {
			if n != 1 {
				t.Errorf("%s ran %d times", text, n)
			}
		}
		torn := 0
		entries, err := os.ReadDir(filepath.Join(dir, "files"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, "files", e.Name())
			if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), "batch_req_") {
				torn++
				f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				half := `{"id":"batch_req_x","custom_id":"d","x":"` + strings.Repeat("x", 5000)
				if _, err := f.WriteString(half); err != nil {
					t.Fatal(err)
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if torn != 1 {
			t.Fatalf("%d files have results", torn)
		}
		again := newBackend(nil)
		r = newRig(t, dir, again, nil)
		defer r.stop()
		got := r.ended(id)
		if got.Status != batch.Completed || got.Counts.Completed != 5 ||
			!slices.Equal(ids(r.results(got.OutputFileID)), texts) {
			t.Errorf("%+v with the results of %q", got, ids(r.results(got.OutputFileID)))
		}
		if ran := again.ran(); len(ran) != 2 || ran["d"] != 1 || ran["e"] != 1 {
			t.Errorf("after the restart %v ran", ran)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "files")); err != nil || len(left) != 4 {
			t.Errorf("the folder has %v, %v", left, err)
		}
	})
}

func TestBatch_WaitsForResultsThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		id, content := interrupted(t, dir)
		away := filepath.Join(t.TempDir(), "away")
		if err := errors.Join(os.Rename(content, away), os.Mkdir(content, 0o700)); err != nil {
			t.Fatal(err)
		}
		b := newBackend(nil)
		second := newRig(t, dir, b, nil)
		defer second.stop()
		time.Sleep(time.Minute) // of virtual time
		synctest.Wait()         // a try at the same time must not see the file while it is being moved
		if _, got := second.call("GET", "/v1/batches/"+id, ""); got["status"] != "in_progress" || len(b.ran()) != 0 {
			t.Errorf("it is %v, and %v ran", got, b.ran())
		}
		if err := errors.Join(os.Remove(content), os.Rename(away, content)); err != nil {
			t.Fatal(err)
		}
		got := second.ended(id)
		if all := ids(second.results(got.OutputFileID)); got.Status != batch.Completed ||
			!slices.Equal(all, []string{"a", "b"}) || b.ran()["a"] != 0 {
			t.Errorf("%+v with %q; %v ran", got, all, b.ran())
		}
	})
}

// TestBatch_DamagedResultsAreKept damages a stored result. The batch cannot go on, but what it has is not lost.
func TestBatch_DamagedResultsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		id, content := interrupted(t, dir)
		text, err := os.ReadFile(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(content, append([]byte("damaged\n"), text...), 0o600); err != nil {
			t.Fatal(err)
		}
		second := newRig(t, dir, newBackend(nil), nil)
		got := second.ended(id)
		second.stop()
		if got.Status != batch.Failed || got.OutputFileID == nil || got.ErrorFileID != nil {
			t.Fatalf("%+v", got)
		}
		third := newRig(t, dir, newBackend(nil), nil)
		defer third.stop()
		w := third.raw("GET", "/v1/files/"+*got.OutputFileID+"/content", "", "")
		if w.Code != 200 || w.Body.String() != "damaged\n"+string(text) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// interrupted stops a service in the middle of a batch of two requests, of which the first has a result, and returns
// the batch and the path of its output.
func interrupted(t *testing.T, dir string) (id, content string) {
	t.Helper()
	r := newRig(t, dir, newBackend(func(ctx context.Context, text string) error {
		if text == "a" {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}), nil)
	id = r.create(r.upload(chats("a", "b")), chat)
	synctest.Wait()
	r.stop()
	text, err := os.ReadFile(filepath.Join(dir, "batches", id+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var stored struct{ Output string }
	if err := json.Unmarshal(text, &stored); err != nil {
		t.Fatal(err)
	}
	return id, filepath.Join(dir, "files", stored.Output)
}
