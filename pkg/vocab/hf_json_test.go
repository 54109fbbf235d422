package vocab_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// TestFromFS_JSONAsPythonWritesIt reads files with a byte-order mark, numbers that JSON lacks, ids
// in quotes and an integer beyond 64 bits.
func TestFromFS_JSONAsPythonWritesIt(t *testing.T) {
	const mark = "\ufeff"
	files := fstest.MapFS{}
	for name, text := range map[string]string{
		"tokenizer.json": mark + `{"model":{"type":"WordPiece","unk_token":"a","vocab":{"a":0,"b":1,"c":2}}}`,
		"tokenizer_config.json": mark +
			`{"model_max_length":1000000000000000019884624838656,"x":Infinity,"eos_token":"b"}`,
		"generation_config.json": `{"eos_token_id":["1",2],"temperature":NaN,"time_step_limit":[0.0,Infinity]}`,
	} {
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	v, err := vocab.FromFS(files)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(v.EOG(), []int32{1, 2}) {
		t.Errorf("ends at %v", v.EOG())
	}
	for _, bad := range []string{`{"eos_token_id":"one"}`, `{"eos_token_id":Infinity}`, `{"eos_token_id":{}}`} {
		files["generation_config.json"] = &fstest.MapFile{Data: []byte(bad)}
		var format *vocab.FormatError
		if _, err := vocab.FromFS(files); !errors.As(err, &format) || format.Field != "generation_config.json" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestFromFS_NestingIsBounded reads a deeply nested normalizer, each level of which would take
// time.
func TestFromFS_NestingIsBounded(t *testing.T) {
	const depth = 3000
	text := strings.Repeat(`{"type":"Sequence","normalizers":[`, depth) + strings.Repeat("]}", depth)
	_, err := vocab.FromFS(fstest.MapFS{"tokenizer.json": &fstest.MapFile{Data: []byte(`{"normalizer":` + text + `}`)}})
	var format *vocab.FormatError
	if !errors.As(err, &format) || !strings.Contains(err.Error(), "deep") {
		t.Errorf("%v", err)
	}
}
