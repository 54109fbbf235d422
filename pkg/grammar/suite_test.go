package grammar_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// TestSchema_Suite runs a folder of the JSON Schema Test Suite, such as
// tests/draft2020-12, which LAMINA_JSON_SCHEMA_SUITE names: what is invalid is never
// accepted, and what is valid is unless the schema is refused by name.
func TestSchema_Suite(t *testing.T) {
	dir := os.Getenv("LAMINA_JSON_SCHEMA_SUITE")
	if dir == "" {
		t.Skip("skip: LAMINA_JSON_SCHEMA_SUITE names no folder of the JSON Schema Test Suite")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("find cases in %s: %v", dir, err)
	}
	var schemas, refused, valid, taken, invalid int
	why := map[string]int{}
	for _, file := range files {
		for _, group := range readJSON[[]struct {
			Description string
			Schema      json.RawMessage
			Tests       []struct {
				Description string
				Data        json.RawMessage
				Valid       bool
			}
		}](t, file) {
			schemas++
			name := filepath.Base(file) + ": " + group.Description
			g, err := grammar.Schema(group.Schema)
			var c *grammar.Compiled
			if err == nil {
				c, err = grammar.Compile(g, nil)
			}
			var unsupported *grammar.UnsupportedError
			var limit *grammar.LimitError
			if errors.As(err, &unsupported) || errors.As(err, &limit) {
				refused++
				reason, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "honour schema "), " ")
				why[reason]++
				t.Logf("%s: %v", name, err)
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			for _, test := range group.Tests {
				text := pythonJSON(t, test.Data)
				got := accepts(c, text)
				switch {
				case test.Valid:
					valid++
					if got {
						taken++
					} else {
						t.Logf("%s: %s: refuses %s", name, test.Description, text)
					}
				default:
					invalid++
					if got {
						t.Errorf("%s: %s: accepts %s", name, test.Description, text)
					}
				}
			}
		}
	}
	t.Logf("%d schemas, %d refused %v; %d of %d valid texts accepted; %d invalid", schemas, refused, why, taken, valid, invalid)
}

// pythonJSON writes data as Python's json.dumps does, its order kept.
func pythonJSON(t *testing.T, data json.RawMessage) string {
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	var b strings.Builder
	var value func()
	token := func() json.Token {
		tok, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	value = func() {
		tok := token()
		delim, ok := tok.(json.Delim)
		if !ok {
			text, err := json.Marshal(tok)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(text)
			return
		}
		b.WriteString(delim.String())
		for i := 0; d.More(); i++ {
			if i > 0 {
				b.WriteString(", ")
			}
			if delim == '{' {
				text, err := json.Marshal(token())
				if err != nil {
					t.Fatal(err)
				}
				b.Write(text)
				b.WriteString(": ")
			}
			value()
		}
		b.WriteString(token().(json.Delim).String())
	}
	value()
	return b.String()
}
