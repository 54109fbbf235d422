package batches_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-mesh/lamina/pkg/batch"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/services/router/batches"
)

func tenant(name string) []string { return []string{"Lamina-Tenant", name} }

// many returns the texts of a batch of n requests.
func many(name string, n int) (texts []string) {
	for i := range n {
		texts = append(texts, fmt.Sprint(name, i))
	}
	return texts
}

// TestSlots_AreSharedByTenants gives one tenant four batches and another one a single batch. The second has half of the
// slots as soon as those of its first requests are free, and the first has all of them when the second has ended.
func TestSlots_AreSharedByTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(func(context.Context, string) error {
			time.Sleep(time.Minute) // of virtual time
			return nil
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Limits.Requests = 4 })
		defer r.stop()
		var large []string
		start := time.Now()
		for i := range 4 {
			file := r.upload(chats(many(fmt.Sprint("large ", i, " "), 8)...), tenant("a")...)
			large = append(large, r.create(file, chat, tenant("a")...))
		}
		synctest.Wait()
		small := r.create(r.upload(chats(many("small ", 6)...), tenant("b")...), chat, tenant("b")...)
		got := r.ended(small, tenant("b")...)
		// A minute until slots are free, and three in which two requests run at a time.
		if took := time.Since(start); got.Counts.Completed != 6 || took > 5*time.Minute {
			t.Errorf("%+v after %v", got.Counts, took)
		}
		for _, id := range large {
			r.ended(id, tenant("a")...)
		}
		// 38 requests at four at a time take ten minutes.
		if took := time.Since(start); b.most != 4 || took > 11*time.Minute {
			t.Errorf("%d ran at a time, and all took %v", b.most, took)
		}
	})
}

// TestSlots_NoTenantWaitsForTheBatchesOfOthers lets four tenants have as many batches as they may, none of which ends
// soon. The batch of a fifth one runs.
func TestSlots_NoTenantWaitsForTheBatchesOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(func(context.Context, string) error {
			time.Sleep(time.Minute) // of virtual time
			return nil
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Limits.Requests = 2 })
		defer r.stop()
		for i := range 4 {
			name := fmt.Sprint("tenant ", i)
			file := r.upload(chats(many(name, 100)...), tenant(name)...)
			for range 16 {
				r.create(file, chat, tenant(name)...)
			}
		}
		synctest.Wait()
		start := time.Now()
		got := r.ended(r.create(r.upload(chats("a"), tenant("other")...), chat, tenant("other")...), tenant("other")...)
		if took := time.Since(start); got.Counts.Completed != 1 || took > 5*time.Minute {
			t.Errorf("%+v after %v", got.Counts, took)
		}
	})
}

// heap returns what is in use after collections. What lies in a sync.Pool survives one of them, for each processor.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestBatch_RequestsThatWaitTakeNoMemory has 64 requests of 512 KiB in 8 batches. First all of them are refused for
// now, and then eight run while the others wait for a slot.
func TestBatch_RequestsThatWaitTakeNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refuse atomic.Bool
		refuse.Store(true)
		release := make(chan struct{})
		b := newBackend(func(ctx context.Context, _ string) error {
			if refuse.Load() {
				return fault.New(fault.Unavailable, "no room").After(time.Hour)
			}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return ctx.Err()
		})
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) { o.Limits.Requests = 8 })
		defer r.stop()
		var in strings.Builder
		pad := strings.Repeat("x", 512<<10)
		for _, text := range many("", 8) {
			fmt.Fprintf(&in, `{"custom_id":"%s","method":"POST","url":"%s","body":{"user":"%s","messages":[`+
				`{"role":"user","content":"%s"}]}}`+"\n", text, chat, pad, text)
		}
		file := r.upload(in.String())
		in.Reset()
		before := heap()
		var all []string
		for range 8 {
			all = append(all, r.create(file, chat))
		}
		synctest.Wait()
		if n := heap() - before; n > 8<<20 {
			t.Errorf("64 requests of 512 KiB that were refused for now take %d MiB", n>>20)
		}
		ran := 0
		for _, n := range b.ran() {
			ran += n
		}
		if ran != 64 {
			t.Errorf("%d were tried, want 64", ran)
		}
		refuse.Store(false)
		time.Sleep(2 * time.Hour) // of virtual time
		synctest.Wait()
		if n, now := heap()-before, b.running(); now != 8 || n > 20<<20 {
			t.Errorf("%d of 64 requests of 512 KiB run, and take %d MiB", now, n>>20)
		}
		close(release)
		for _, id := range all {
			if got := r.ended(id); got.Counts.Completed != 8 {
				t.Errorf("%+v", got.Counts)
			}
		}
	})
}

// metrics returns the values of the metrics of batches, by their names and labels.
func metrics(t *testing.T, from *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "lamina_batch_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

func TestMetrics_SayWhatWaitsRunsAndHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend(func(ctx context.Context, text string) error {
			switch text {
			case "hangs":
				<-ctx.Done()
				return ctx.Err()
			case "wrong":
				return fault.New(fault.Invalid, "no")
			case "later":
				return fault.New(fault.Unavailable, "no room").After(time.Hour)
			}
			return nil
		})
		registry := prometheus.NewRegistry()
		r := newRig(t, t.TempDir(), b, func(o *batches.Options) {
			o.Limits.Requests, o.Metrics = 3, registry
		})
		defer r.stop()
		check := func(what string, want map[string]float64) {
			t.Helper()
			got := metrics(t, registry)
			for name, v := range want {
				if have, ok := got[name]; !ok || have != v {
					t.Errorf("%s: %s is %v (%v), want %v", what, name, have, ok, v)
				}
			}
		}
		check("at first", map[string]float64{
			"lines waiting": 0, "lines running": 0, "lines_total ok": 0, "lines_total failed": 0, "lines_total not_run": 0,
			"retries_total": 0, "batches in_progress": 0, "batches_total completed": 0, "batches_total expired": 0,
			"slots": 3, "file_bytes": 0, "file_limit_bytes": 8 << 30,
		})
		in := chats("good", "wrong", "hangs", "later", "too")
		id := r.create(r.upload(in), chat)
		synctest.Wait()
		check("while one hangs", map[string]float64{
			"lines waiting": 1, "lines running": 1, "lines_total ok": 2, "lines_total failed": 1, "lines_total not_run": 0,
			"retries_total": 1, "batches in_progress": 1, "batches_total cancelled": 0,
		})
		if got := metrics(t, registry)["file_bytes"]; got <= float64(len(in)) {
			t.Errorf("the files take %v bytes", got)
		}
		if status, answer := r.call("POST", "/v1/batches/"+id+"/cancel", ""); status != http.StatusOK {
			t.Fatalf("cancel: %d %v", status, answer)
		}
		if got := r.ended(id); got.Status != batch.Cancelled {
			t.Errorf("%+v", got)
		}
		check("at the end", map[string]float64{
			"lines waiting": 0, "lines running": 0, "lines_total ok": 2, "lines_total failed": 1, "lines_total not_run": 2,
			"batches in_progress": 0, "batches cancelling": 0, "batches_total cancelled": 1, "batches_total completed": 0,
		})
	})
}
