package model_test

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// encoder is a tiny encoder with the hidden states that transformers computes.
type encoder struct {
	files  *model.Files
	IDs    [][]int32
	Hidden [][][]float64
}

func encoders(t *testing.T) map[string]*encoder {
	t.Helper()
	out := map[string]*encoder{}
	for _, name := range []string{"bert", "xlm-roberta"} {
		folder := filepath.Join("testdata", "encoders", name)
		files, err := model.Open(folder)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = files.Source.Close() })
		e := &encoder{files: files}
		text, err := os.ReadFile(filepath.Join(folder, "golden.json"))
		if err == nil {
			err = json.Unmarshal(text, e)
		}
		if err != nil {
			t.Fatal(err)
		}
		out[name] = e
	}
	return out
}

// encode returns the hidden states of texts that are computed as one batch over some stages.
func (e *encoder) encode(t *testing.T, set kernel.Set[float32], stages int, texts ...[]int32) []float32 {
	t.Helper()
	var hidden []float32
	for _, r := range model.Split(len(e.files.Spec.Layers), stages) {
		s, err := model.Load(e.files, r, set, model.LoadOptions{Encoder: true})
		if err != nil {
			t.Fatal(err)
		}
		cache := kvcache.New(s.CacheConfig(8), set)
		b := &model.Batch[float32]{Hidden: hidden}
		for _, ids := range texts {
			b.Entries = append(b.Entries, model.Entry[float32]{Seq: cache.NewSequence(), Rows: len(ids),
				Logits: len(ids)})
			b.IDs = append(b.IDs, ids...)
		}
		if hidden, err = s.Forward(b); err != nil {
			t.Fatal(err)
		}
	}
	return slices.Clone(hidden)
}

// TestEncoder_EqualsTransformers compares hidden states with those of transformers, and bits between
// stages and batches.
func TestEncoder_EqualsTransformers(t *testing.T) {
	fast := cpu.New(2)
	defer fast.Close()
	for name, e := range encoders(t) {
		for kind, set := range map[string]kernel.Set[float32]{"ref": ref.New[float32](), "cpu": fast} {
			whole := e.encode(t, set, 1, e.IDs...)
			if split := e.encode(t, set, 2, e.IDs...); !slices.Equal(split, whole) {
				t.Errorf("%s on %s: two stages give other bits", name, kind)
			}
			for i, ids := range e.IDs {
				alone := e.encode(t, set, 1, ids)
				if !slices.Equal(alone, whole[:len(alone)]) {
					t.Errorf("%s on %s: text %d has other bits alone", name, kind, i)
				}
				whole = whole[len(alone):]
				for r, row := range e.Hidden[i] {
					for c, want := range row {
						if got := float64(alone[r*len(row)+c]); math.Abs(got-want) > 2e-5 {
							t.Fatalf("%s on %s: text %d, row %d, component %d: got %g, want %g", name, kind, i, r, c, got, want)
						}
					}
				}
			}
		}
	}
}

// TestEncoder_NeedsItsCaller checks that nobody gets an encoder who wants to continue texts or to train, and
// that a text cannot come in pieces.
func TestEncoder_NeedsItsCaller(t *testing.T) {
	f := encoders(t)["bert"].files
	all := model.Range{Hi: len(f.Spec.Layers)}
	set := ref.New[float32]()
	for _, o := range []model.LoadOptions{{}, {Dense: true}, {Dense: true, Encoder: true}} {
		var want *model.UnsupportedError
		if _, err := model.Load(f, all, set, o); !errors.As(err, &want) {
			t.Errorf("%+v: got %v", o, err)
		}
	}
	if _, err := model.Init(f.Spec, all, set, 1); fault.CodeOf(err) != fault.Unimplemented {
		t.Errorf("random weights: got %v", err)
	}
	s, err := model.Load(f, all, set, model.LoadOptions{Encoder: true})
	if err != nil {
		t.Fatal(err)
	}
	seq := kvcache.New(s.CacheConfig(8), set).NewSequence()
	for i, want := range []fault.Code{0, fault.Invalid} {
		_, err := s.Forward(&model.Batch[float32]{IDs: []int32{2, 3}, Entries: []model.Entry[float32]{
			{Seq: seq, Pos: 2 * i, Rows: 2, Logits: 2}}})
		if err == nil != (want == 0) || err != nil && fault.CodeOf(err) != want {
			t.Errorf("piece %d: got %v", i, err)
		}
	}
}

func TestPool_Kinds(t *testing.T) {
	rows := []float32{3, 0, 1, 0, 2, 6} // [3,2]
	for _, c := range []struct {
		p    model.Pooling
		want []float32
	}{
		{model.Pooling{Kind: model.PoolMean}, []float32{2, 2}},
		{model.Pooling{Kind: model.PoolFirst}, []float32{3, 0}},
		{model.Pooling{Kind: model.PoolLast}, []float32{2, 6}},
		{model.Pooling{Kind: model.PoolFirst, Normalize: true}, []float32{1, 0}},
	} {
		if got := model.Pool(c.p, rows, 2); !slices.Equal(got, c.want) {
			t.Errorf("%+v: got %v, want %v", c.p, got, c.want)
		}
	}
	if got := model.Pool(model.Pooling{Normalize: true, Kind: model.PoolMean}, make([]float32, 4), 2); got[0] != 0 {
		t.Errorf("rows of zeros: got %v", got)
	}
}

// TestPooling_ReadsSentenceTransformers checks the files of sentence-transformers, and the names in
// errors about them.
func TestPooling_ReadsSentenceTransformers(t *testing.T) {
	spec := encoders(t)["bert"].files.Spec
	const modules = `[{"path": "", "type": "sentence_transformers.models.Transformer"},
		{"path": "pool", "type": "sentence_transformers.models.Pooling"}]`
	for name, c := range map[string]struct {
		files map[string]string
		want  model.Pooling
		err   string
	}{
		"nothing": {nil, model.Pooling{Kind: model.PoolMean, Normalize: true, MaxTokens: 12}, ""},
		"first": {map[string]string{"modules.json": modules, "pool/config.json": `{"pooling_mode_cls_token": true}`,
			"sentence_bert_config.json": `{"max_seq_length": 9}`},
			model.Pooling{Kind: model.PoolFirst, MaxTokens: 9}, ""},
		"outside": {map[string]string{"modules.json": `[{"path": "../pool", "type": "a.Pooling"}]`}, model.Pooling{},
			`read model: modules.json: 0.path: "../pool" is not inside the folder`},
		"other": {map[string]string{"modules.json": `[{"path": "dense", "type": "a.Dense"}]`}, model.Pooling{},
			`read model: modules.json: 0.type "a.Dense" is not supported (supported: Transformer, Pooling, Normalize)`},
	} {
		folder := t.TempDir()
		for path, text := range c.files {
			path = filepath.Join(folder, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := model.NewFiles(spec, folder, nil).Pooling()
		if c.err == "" && (err != nil || got != c.want) || c.err != "" && (err == nil || err.Error() != c.err) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	end := func(id int32) bool { return id == 3 }
	long := model.Pooling{MaxTokens: 3}
	if got := long.Truncate([]int32{2, 5, 6, 7, 3}, end); !slices.Equal(got, []int32{2, 5, 3}) {
		t.Errorf("truncated with an end: got %v", got)
	}
	if got := long.Truncate([]int32{2, 5, 6, 7, 8}, end); !slices.Equal(got, []int32{2, 5, 6}) {
		t.Errorf("truncated: got %v", got)
	}
}
