package pull_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/pull"
)

func FuzzParseRange(f *testing.F) {
	for _, text := range []string{"bytes 0-99/1234", "bytes 0-0/*", "bytes 5-2/9", "bytes 0-9/5", "", "bytes */7"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		from, to, total, err := pull.ParseRange(text)
		if err == nil && (from < 0 || to <= from || total != -1 && total < to) {
			t.Errorf("%q is read as bytes %d to %d of %d", text, from, to, total)
		}
	})
}

func FuzzParseTree(f *testing.F) {
	f.Add([]byte(`[{"type":"file","path":"a.gguf","size":5,"lfs":{"oid":"00","size":7}}]`))
	f.Add([]byte(`[{"type":"directory","path":"x"}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		files, err := pull.ParseTree(text)
		for _, file := range files {
			if err == nil && file.Size < 0 {
				t.Errorf("%s is read as %+v", text, file)
			}
		}
	})
}
