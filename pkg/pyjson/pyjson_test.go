package pyjson_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/pyjson"
)

func TestPlain_QuotesWhatJSONLacks(t *testing.T) {
	for text, want := range map[string]string{
		"\xef\xbb\xbf{}":                        `{}`,
		`{"a":Infinity,"b":[-Infinity, NaN]}`:   `{"a":"Infinity","b":["-Infinity", "NaN"]}`,
		`{"NaN":"Infinity","\"NaN":"\\",c:NaN}`: `{"NaN":"Infinity","\"NaN":"\\",c:"NaN"}`,
		`{"a":1}`:                               `{"a":1}`,
	} {
		if got := string(pyjson.Plain([]byte(text))); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestUnmarshal_BoundsDepth(t *testing.T) {
	for depth, ok := range map[int]bool{pyjson.MaxDepth: true, pyjson.MaxDepth + 1: false, 100_000: false} {
		var v any
		err := pyjson.Unmarshal([]byte(strings.Repeat("[", depth)+strings.Repeat("]", depth)), &v)
		if (err == nil) != ok {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
	var v any
	if err := pyjson.Unmarshal([]byte(`{"brackets in a string":"`+strings.Repeat("[{", 100)+`\"["}`), &v); err != nil {
		t.Error(err)
	}
}

func FuzzPlain(f *testing.F) {
	f.Add([]byte(`{"a":NaN,"b":"\"Infinity","c":-Infinity}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if json.Valid(text) && string(pyjson.Plain(text)) != string(text) {
			t.Errorf("valid JSON %q changed", text)
		}
		var v any
		_ = pyjson.Unmarshal(text, &v)
	})
}
