package responses_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/services/router/httpapi/httpapitest"
)

// TestResponses_ManyItemsOfReasoningTakeLinearMemory sends a long thought, to which thousands of short ones are added.
func TestResponses_ManyItemsOfReasoningTakeLinearMemory(t *testing.T) {
	const long, items, most = 256 << 10, 6000, 1 << 30 // quadratic would be 1.5 GB
	thought := func(text string) string {
		return `{"type":"reasoning","summary":[{"type":"summary_text","text":"` + text + `"}]},`
	}
	b := httpapitest.Talker()
	s := serve(t, b, options())
	body := `{"model":"m","input":[{"role":"user","content":"hi"},` + thought(strings.Repeat("x", long)) +
		strings.Repeat(thought("y"), items) + `{"role":"user","content":"and?"}]}`
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	status, text := call(t, "POST", s.URL+"/v1/responses", "", body)
	runtime.ReadMemStats(&after)
	if status != 200 {
		t.Fatalf("%d %.300s", status, text)
	}
	n := after.TotalAlloc - before.TotalAlloc
	if n > most {
		t.Errorf("%d MB are allocated for a request of %d KB", n>>20, len(body)>>10)
	}
	t.Logf("%d MB", n>>20)
	got := b.Chats()[0].GetMessages()
	if len(got) != 3 || !strings.Contains(got[1].GetJson(), "xxx"+strings.Repeat("y", items)) {
		t.Errorf("%d messages", len(got))
	}
}
