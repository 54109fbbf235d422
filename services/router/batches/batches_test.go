package batches_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/batches"
)

func TestBatch_RunsEveryRequestAtItsOwnPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(nil)
		r := newRig(t, t.TempDir(), b, nil)
		defer r.stop()
		for path, c := range map[string]struct{ good, bad, want string }{
			chat:              {`{"messages":[{"role":"user","content":"x"}]}`, `{"messages":[]}`, `"content":"hello"`},
			"/v1/completions": {`{"prompt":"x"}`, `{"prompt":"x","n":-1}`, `"text":"hello"`},
			"/v1/embeddings":  {`{"input":"x"}`, `{"input":7}`, `"embedding":[1,0]`},
			"/v1/responses":   {`{"input":"x"}`, `{"input":"x","tool_choice":"no"}`, `"text":"hello"`},
		} {
			var in strings.Builder
			for id, body := range map[string]string{"good": c.good, "bad": c.bad} {
				fmt.Fprintf(&in, `{"custom_id":%q,"method":"POST","url":%q,"body":%s}`+"\n\n", id, path, body)
			}
			got := r.ended(r.create(r.upload(in.String()), path))
			if got.Status != batch.Completed || got.Counts != (batch.Counts{Total: 2, Completed: 1, Failed: 1}) ||
				got.Metadata["k"] != "v" || got.OutputFileID == nil || got.ErrorFileID == nil {
				t.Errorf("%s: %+v", path, got)
				continue
			}
			good, bad := r.results(got.OutputFileID)["good"], r.results(got.ErrorFileID)["bad"]
			if good.Response == nil || good.Response.StatusCode != http.StatusOK || good.Response.RequestID == "" ||
				!strings.Contains(string(good.Response.Body), c.want) || good.Error != nil {
				t.Errorf("%s: the output is %+v", path, good)
			}
			if bad.Response == nil || bad.Response.StatusCode != http.StatusBadRequest ||
				!strings.Contains(string(bad.Response.Body), `"error":{"message":`) {
				t.Errorf("%s: the error is %+v", path, bad)
			}
		}
		if b.bad != nil {
			t.Error(b.bad)
		}
	})
}

func TestBatch_AFileWithAWrongLineRunsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(nil)
		r := newRig(t, t.TempDir(), b, nil)
		defer r.stop()
		got := r.ended(r.create(r.upload(chats("a", "a")+"x\n"), chat))
		if got.Status != batch.Failed || got.FailedAt == nil || got.Errors == nil || len(got.Errors.Data) != 2 ||
			got.Errors.Data[0].Code != batch.CodeDuplicate || *got.Errors.Data[1].Line != 3 || len(b.ran()) != 0 {
			t.Errorf("%+v %+v, and %v ran", got, got.Errors, b.ran())
		}
	})
}

func TestBatch_RefusalsForNowAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *backend
		b = newBackend(func(_ context.Context, text string) error {
			switch n := b.ran()[text]; {
			case text == "full" && n < 4:
				return fault.New(fault.Unavailable, "no room").After(10 * time.Second)
			case text == "budget" && n < 3:
				return fault.New(fault.Exhausted, "no budget").After(time.Minute)
			case text == "early" && n < 3, text == "never":
				return fault.New(fault.NotFound, "no such model")
			}
			return nil
		})
		r := newRig(t, t.TempDir(), b, nil)
		defer r.stop()
		start := time.Now()
		got := r.ended(r.create(r.upload(chats("full", "budget", "early", "never")), chat))
		took := time.Since(start)
		if got.Counts != (batch.Counts{Total: 4, Completed: 3, Failed: 1}) || b.ran()["full"] != 4 ||
			b.ran()["budget"] != 3 || took < 2*time.Minute || took > 4*time.Minute {
			t.Errorf("%+v after %v, runs %v", got, took, b.ran())
		}
		never := r.results(got.ErrorFileID)["never"]
		if never.Response == nil || never.Response.StatusCode != http.StatusNotFound {
			t.Errorf("a model that does not come is %+v", never)
		}
	})
}

func TestBatch_AtMostSoManyRequestsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(func(context.Context, string) error {
			time.Sleep(time.Minute) // of virtual time
			return nil
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Limits.Requests = 3 })
		defer r.stop()
		first := r.create(r.upload(chats("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")), chat)
		second := r.create(r.upload(chats("k", "l")), chat)
		start := time.Now()
		r.ended(second)
		turn := time.Since(start)
		r.ended(first)
		if took := time.Since(start); b.most != 3 || took > 5*time.Minute || turn > 3*time.Minute {
			t.Errorf("%d ran at a time, all took %v and the second batch %v", b.most, took, turn)
		}
	})
}

func TestBatch_CancelKeepsWhatHasRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(func(ctx context.Context, text string) error {
			if text == "a" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Limits.Requests = 2 })
		defer r.stop()
		file := r.upload(chats("a", "b", "c", "d"))
		id := r.create(file, chat)
		synctest.Wait()
		if status, answer := r.call("DELETE", "/v1/files/"+file, ""); status != 400 ||
			!strings.Contains(fmt.Sprint(answer), "file_in_use") {
			t.Errorf("the input of a batch that runs is deleted: %d %v", status, answer)
		}
		if status, answer := r.call("POST", "/v1/batches/"+id+"/cancel", ""); status != 200 ||
			answer["status"] != "cancelling" && answer["status"] != "cancelled" {
			t.Errorf("cancel: %d %v", status, answer)
		}
		got := r.ended(id)
		if got.Status != batch.Cancelled || got.Counts != (batch.Counts{Total: 4, Completed: 1, Failed: 3}) ||
			got.CancelledAt == nil || !slices.Equal(ids(r.results(got.OutputFileID)), []string{"a"}) {
			t.Errorf("%+v", got)
		}
		for id, one := range r.results(got.ErrorFileID) {
			if one.Error == nil || one.Error.Code != batch.CodeCancelled || one.Response != nil {
				t.Errorf("%s: %+v", id, one)
			}
		}
		if status, answer := r.call("POST", "/v1/batches/"+id+"/cancel", ""); status != 200 ||
			answer["status"] != "cancelled" {
			t.Errorf("cancel again: %d %v", status, answer)
		}
		done := r.ended(r.create(r.upload(chats("a")), chat))
		if status, answer := r.call("POST", "/v1/batches/"+done.ID+"/cancel", ""); status != 400 ||
			!strings.Contains(fmt.Sprint(answer), "invalid_batch_status") {
			t.Errorf("cancel of a completed batch: %d %v", status, answer)
		}
		for _, id := range []string{file, *got.OutputFileID} {
			if status, answer := r.call("DELETE", "/v1/files/"+id, ""); status != 200 || answer["deleted"] != true {
				t.Errorf("delete: %d %v", status, answer)
			}
			if status, _ := r.call("GET", "/v1/files/"+id, ""); status != 404 {
				t.Errorf("a deleted file: %d", status)
			}
		}
	})
}

func TestBatch_ExpiresAfterItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		hang := func(ctx context.Context, text string) error {
			if text == "a" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		check := func(r *rig, id string) {
			t.Helper()
			got := r.ended(id)
			if got.Status != batch.Expired || got.Counts != (batch.Counts{Total: 3, Completed: 1, Failed: 2}) ||
				*got.ExpiredAt < got.ExpiresAt {
				t.Errorf("%+v", got)
			}
			for id, one := range r.results(got.ErrorFileID) {
				if one.Error == nil || one.Error.Code != batch.CodeExpired {
					t.Errorf("%s: %+v", id, one)
				}
			}
		}
		start := time.Now()
		r := newRig(t, dir, newBackend(hang), nil)
		check(r, r.create(r.upload(chats("a", "b", "c")), chat))
		if took := time.Since(start); took < 24*time.Hour || took > 24*time.Hour+time.Minute {
			t.Errorf("it expired after %v", took)
		}
		second := r.create(r.upload(chats("a", "b", "c")), chat)
		synctest.Wait()
		r.stop()
		time.Sleep(30 * time.Hour) // of virtual time, in which no router runs
		r = newRig(t, dir, newBackend(nil), nil)
		defer r.stop()
		check(r, second)
	})
}

func TestFiles_BelongToTheirTenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, t.TempDir(), newBackend(nil), nil)
		defer r.stop()
		file := r.upload(chats("a"))
		done := r.ended(r.create(file, chat))
		other := []string{"Lamina-Tenant", "other"}
		for _, c := range [][2]string{{"GET", "/v1/files/" + file}, {"GET", "/v1/files/" + file + "/content"},
			{"GET", "/v1/files/" + *done.OutputFileID + "/content"}, {"DELETE", "/v1/files/" + file},
			{"GET", "/v1/batches/" + done.ID}, {"POST", "/v1/batches/" + done.ID + "/cancel"}} {
			if status, answer := r.call(c[0], c[1], "", other...); status != http.StatusNotFound ||
				answer["error"] == nil {
				t.Errorf("%v by another tenant: %d %v", c, status, answer)
			}
		}
		status, answer := r.call("POST", "/v1/batches", `{"input_file_id":"`+file+
			`","endpoint":"/v1/completions","completion_window":"24h"}`, other...)
		if status != http.StatusNotFound {
			t.Errorf("a batch of another tenant's file: %d %v", status, answer)
		}
		for path, own := range map[string]int{"/v1/files": 2, "/v1/batches": 1} {
			if _, list := r.call("GET", path, "", other...); len(list["data"].([]any)) != 0 {
				t.Errorf("another tenant sees %v", list)
			}
			if _, list := r.call("GET", path, ""); len(list["data"].([]any)) != own {
				t.Errorf("the tenant sees %v", list)
			}
		}
	})
}

func TestLists_PageByPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, t.TempDir(), newBackend(nil), nil)
		defer r.stop()
		var want []string
		for range 5 {
			want = append(want, r.upload("x"))
			time.Sleep(time.Second) // of virtual time
		}
		read := func(query string) (got []string) {
			after := ""
			for {
				_, page := r.call("GET", "/v1/files?limit=2"+query+after, "")
				for _, f := range page["data"].([]any) {
					got = append(got, f.(map[string]any)["id"].(string))
				}
				if page["has_more"] != true {
					return got
				}
				after = "&after=" + page["last_id"].(string)
			}
		}
		if got := read("&order=asc&purpose=batch"); !slices.Equal(got, want) {
			t.Errorf("ascending: %q, want %q", got, want)
		}
		slices.Reverse(want)
		if got := read(""); !slices.Equal(got, want) {
			t.Errorf("descending: %q, want %q", got, want)
		}
		if got := read("&purpose=batch_output"); got != nil {
			t.Errorf("of another purpose: %q", got)
		}
		for _, query := range []string{"limit=0", "limit=x", "order=x", "after=x"} {
			for _, path := range []string{"/v1/files?", "/v1/batches?"} {
				if status, answer := r.call("GET", path+query, ""); status != 400 {
					t.Errorf("%s%s: %d %v", path, query, status, answer)
				}
			}
		}
	})
}

func TestRequests_WrongOnesAreRefusedByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := newRig(t, dir, newBackend(nil), func(o *batches.Options) { o.Limits.FileBytes = 1000 })
		defer r.stop()
		file := r.upload(chats("a"))
		output := *r.ended(r.create(file, chat)).OutputFileID
		for _, c := range []struct{ body, param string }{
			{`{"endpoint":"` + chat + `","completion_window":"24h"}`, "input_file_id"},
			{`{"input_file_id":"` + file + `","completion_window":"24h"}`, "endpoint"},
			{`{"input_file_id":"` + file + `","endpoint":"/v1/models","completion_window":"24h"}`, "endpoint"},
			{`{"input_file_id":"` + file + `","endpoint":"` + chat + `"}`, "completion_window"},
			{`{"input_file_id":"` + file + `","endpoint":"` + chat + `","completion_window":"1h"}`,
				"completion_window"},
			{`{"input_file_id":"` + output + `","endpoint":"` + chat + `","completion_window":"24h"}`, "input_file_id"},
			{`{"input_file_id":"` + file + `","endpoint":"` + chat + `","completion_window":"24h","metadata":{"` +
				strings.Repeat("k", 65) + `":""}}`, "metadata"},
			{`{"input_file_id":"` + file + `","endpoint":"` + chat + `","completion_window":"24h",` +
				`"output_expires_after":{"seconds":1}}`, "output_expires_after"},
		} {
			status, answer := r.call("POST", "/v1/batches", c.body)
			if e, _ := answer["error"].(map[string]any); status != 400 || e["param"] != c.param {
				t.Errorf("%s: %d %v", c.body, status, answer)
			}
		}
		for _, c := range []struct {
			param string
			parts []string
		}{
			{"purpose", []string{"file", "x"}}, {"purpose", []string{"purpose", "fine-tune", "file", "x"}},
			{"file", []string{"purpose", "batch"}}, {"file", []string{"file", "x", "file", "y"}},
			{"expires_after[anchor]", []string{"expires_after[anchor]", "created_at"}},
			{strings.Repeat("x", 256), []string{strings.Repeat("x", 300), ""}}, {"body", []string{"\u200b", ""}},
			{"file", []string{"purpose", "batch", "file", strings.Repeat("x", 1001)}},
			{"file", []string{"purpose", "batch", "file", strings.Repeat("x", 100_000)}},
		} {
			body, kind := form(c.parts...)
			w := r.raw("POST", "/v1/files", kind, body)
			var answer struct{ Error struct{ Param string } }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 400 && w.Code != 413 ||
				answer.Error.Param != c.param {
				t.Errorf("%.80q: %d %s", c.parts, w.Code, w.Body)
			}
		}
		if status, answer := r.call("POST", "/v1/files", `{}`); status != 400 {
			t.Errorf("JSON as a file: %d %v", status, answer)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "files")); err != nil || len(left) != 4 {
			t.Errorf("refused uploads leave %v, %v", left, err)
		}
	})
}

func TestLimits_HoldForATenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) {
			o.Limits = batches.Limits{Files: 3, Active: 2, Kept: 3, Disk: 2000, FileBytes: 900}
		})
		defer r.stop()
		refused := func(what string, code int, text string) {
			t.Helper()
			if code != http.StatusTooManyRequests {
				t.Errorf("%s: %d %s", what, code, text)
			}
		}
		large, kind := form("purpose", "batch", "file", strings.Repeat("x", 800))
		file := r.upload(chats("a"))
		if w := r.raw("POST", "/v1/files", kind, large); w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		w := r.raw("POST", "/v1/files", kind, large)
		refused("more than half of the disk", w.Code, w.Body.String())
		small := r.upload("x")
		body, kind := form("purpose", "batch", "file", "x")
		w = r.raw("POST", "/v1/files", kind, body)
		refused("a fourth file", w.Code, w.Body.String())
		if status, _ := r.call("DELETE", "/v1/files/"+small, ""); status != 200 {
			t.Errorf("delete: %d", status)
		}
		r.upload("x") // a deleted file makes room

		var all []string
		for range 5 {
			all = append(all, r.create(file, chat), r.create(file, chat))
			status, answer := r.call("POST", "/v1/batches", `{"input_file_id":"`+file+`","endpoint":"`+chat+
				`","completion_window":"24h"}`)
			refused("a third batch", status, fmt.Sprint(answer))
			for _, id := range all[len(all)-2:] {
				r.call("POST", "/v1/batches/"+id+"/cancel", "")
				r.ended(id)
			}
			time.Sleep(time.Second) // of virtual time
		}
		_, list := r.call("GET", "/v1/batches", "")
		if kept := list["data"].([]any); len(kept) != 3 ||
			!slices.Contains(all[8:], kept[0].(map[string]any)["id"].(string)) {
			t.Errorf("%d batches are kept: %v", len(kept), kept)
		}
	})
}

func TestBatch_FailsWhenItsResultsHaveNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, t.TempDir(), newBackend(nil), func(o *batches.Options) {
			o.Limits = batches.Limits{Disk: 4000, Requests: 1}
		})
		defer r.stop()
		got := r.ended(r.create(r.upload(chats("a", "b", "c", "d", "e", "f")), chat))
		if got.Status != batch.Failed || got.Errors == nil || got.Errors.Data[0].Code != "batch_stopped" ||
			got.Counts.Completed == 0 || len(r.results(got.OutputFileID)) != got.Counts.Completed {
			t.Errorf("%+v %+v", got, got.Errors)
		}
	})
}

func TestFolder_NoneAndOneThatIsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none := newRig(t, "", newBackend(nil), nil)
		defer none.stop()
		dir := filepath.Join(t.TempDir(), "batches")
		first := newRig(t, dir, newBackend(nil), nil)
		if _, err := os.Stat(dir); err == nil {
			t.Error("a folder is made before it is needed")
		}
		first.upload("x")
		second := newRig(t, dir, newBackend(nil), nil)
		defer second.stop()
		for code, r := range map[string]*rig{"no_batch_folder": none, "batch_folder_in_use": second} {
			for _, c := range [][2]string{{"GET", "/v1/files"}, {"POST", "/v1/files"}, {"POST", "/v1/batches"}} {
				status, answer := r.call(c[0], c[1], "{}")
				if e, _ := answer["error"].(map[string]any); status != 400 || e["code"] != code {
					t.Errorf("%v: %d %v", c, status, answer)
				}
			}
		}
		first.stop()
		if _, list := second.call("GET", "/v1/files", ""); len(list["data"].([]any)) != 1 {
			t.Errorf("the folder is free, and its files are %v", list)
		}
	})
}

func TestFolder_ThatCannotBeMadeIsNotNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		r := newRig(t, filepath.Join(file, "batches"), newBackend(nil), nil)
		defer r.stop()
		status, answer := r.call("GET", "/v1/files", "")
		if text := fmt.Sprint(answer); status != http.StatusServiceUnavailable || strings.Contains(text, file) ||
			!strings.Contains(text, "not a directory") {
			t.Errorf("%d %v", status, answer)
		}
	})
}
