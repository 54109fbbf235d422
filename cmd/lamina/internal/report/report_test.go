package report_test

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/report"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// folder writes the files of a run.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// metrics returns n steps with a loss that falls.
func metrics(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(
			&b,
			`{"step":%d,"loss":%g,"gradient_norm":1.5,"learning_rate":0.001,"step_ms":10,"tokens_per_second":100`,
			i,
			4/float64(i),
		)
		if i%10 == 0 {
			fmt.Fprintf(&b, `,"validation_loss":%g`, 4.1/float64(i))
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func TestWriteHTML_OnePageThatLoadsNothing(t *testing.T) {
	hostile := `<script src="https://example.org/x.js"></script>`
	a, err := report.Read(folder(t, map[string]string{
		"manifest.json": `{"name":"first","seed":1,"model":{"layers":2}}`,
		"metrics.jsonl": metrics(2000),
		"events.jsonl": `{"step":7,"kind":"quarantined","replica":0,"address":"host:1","message":"not <b>finite"}` + "\n" +
			`{"step":9,"kind":"rollback","message":"a loss of 7 is above 5; back to step 8"}` + "\n",
		"model/training.json": `{"weights_sha256":"abc"}`,
		"samples.jsonl": `{"step":5,"prompt":"Once","text":"` + strings.ReplaceAll(
			hostile,
			`"`,
			`\"`,
		) + `"}` + "\n",
	}))
	if err != nil {
		t.Fatal(err)
	}
	b, err := report.Read(folder(t, map[string]string{
		"manifest.json": `{"name":"<b>second</b>","seed":2,"model":{"layers":2}}`,
		"metrics.jsonl": metrics(3) + `{"step":4,"lo`,
	}))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := report.WriteHTML(&out, []*report.Run{a, b}); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	for _, want := range []string{
		"first", "&lt;b&gt;second", "abc", "&lt;script", "seed", "0.0020 (step 2000)", "1.3333 (step 3)",
		"<td>quarantined</td><td>0</td>", "not &lt;b&gt;finite", "back to step 8", "<th>steps rolled back</th><td>1</td>",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if found := regexp.MustCompile(`<script|<link|<img|<iframe|@import|url\(|src="|<b>second`).
		FindString(page); found != "" {
		t.Errorf("the page has %q", found)
	}
	if strings.Contains(page, "model.layers") {
		t.Error("a comparison lists a field that is the same in all manifests")
	}
	if out.Len() > 400<<10 {
		t.Errorf("the page has %d bytes", out.Len())
	}
	drawings := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(page, -1)
	if len(drawings) < 5 {
		t.Errorf("%d charts", len(drawings))
	}
	for _, d := range drawings {
		if strings.Contains(d, "NaN") || strings.Contains(d, "Inf") {
			t.Errorf("a chart has a place that is no number: %.200s", d)
		}
		for x := xml.NewDecoder(strings.NewReader(d)); ; {
			if _, err := x.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("a chart is not well-formed: %v", err)
			}
		}
	}
}

func TestWriteCSV_HasAllSteps(t *testing.T) {
	r, err := report.Read(folder(t, map[string]string{"manifest.json": `{"name":"a,b"}`, "metrics.jsonl": metrics(20)}))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := report.WriteCSV(&out, []*report.Run{r}); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(rows) != 21 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if got := strings.Join(rows[10], " "); got != "a,b 10 1.5 0.001 0.4 10 100 0.41" {
		t.Errorf("the row of step 10 is %q", got)
	}
}

func TestRead_NamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"metrics.jsonl": metrics(1)}, "manifest.json"},
		{map[string]string{"manifest.json": "[", "metrics.jsonl": metrics(1)}, "manifest.json"},
		{map[string]string{"manifest.json": "{}"}, "no steps"},
		{map[string]string{"manifest.json": "{}", "metrics.jsonl": `{"step":1}`}, "no steps"}, // the line has no end
		{map[string]string{"manifest.json": "{}", "metrics.jsonl": metrics(2) + "x\n"}, "metrics.jsonl: line 3"},
		{map[string]string{"manifest.json": "{}", "metrics.jsonl": "{}\n"}, "metrics.jsonl: line 1: field step"},
		{map[string]string{"manifest.json": "{}", "metrics.jsonl": `{"step":1.5}` + "\n"}, "line 1: field step"},
		{map[string]string{"manifest.json": "{}", "metrics.jsonl": strings.Repeat("x", 2<<20)}, "line 1 has more"},
		{map[string]string{"manifest.json": "{}", "metrics.jsonl": metrics(1), "samples.jsonl": "1\n"},
			"samples.jsonl: line 1"},
		{map[string]string{"manifest.json": "{}", "metrics.jsonl": metrics(1), "model/training.json": "x"},
			"training.json"},
	} {
		_, err := report.Read(folder(t, c.files))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.80v: %v, want an error with %q", c.files, err, c.want)
		}
	}
	if _, err := report.Read(filepath.Join(t.TempDir(), "none")); fault.CodeOf(err) == fault.Internal {
		t.Logf("a missing folder: %v", err)
	}
}

// FuzzRead gives any metrics to the reader and draws what it accepts.
func FuzzRead(f *testing.F) {
	f.Add([]byte(metrics(3)))
	f.Add([]byte(`{"step":1,"loss":1e308}` + "\n" + `{"step":9007199254740992,"loss":-1e308}` + "\n"))
	f.Add([]byte(`{"step":0,"loss":1e-320,"bubble":5e-324}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := report.Read(folder(t, map[string]string{"manifest.json": "{}", "metrics.jsonl": string(text)}))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := report.WriteHTML(&out, []*report.Run{r}); err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(`[" ,]([NaI]+n[fF]?|[+-]Inf)[" ,]`).Match(out.Bytes()) {
			t.Errorf("the page has a place that is no number")
		}
	})
}
