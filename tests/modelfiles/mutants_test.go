//go:build unix

package modelfiles_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/pkg/weights/filetest"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

// count returns the number of mutants for each format: 10,000 in the slow tests.
func count() int {
	if os.Getenv("LAMINA_SLOW") == "1" {
		return 10_000
	}
	return 300
}

// base is a valid file to damage, and the folder in which it is opened.
type base struct {
	format filetest.Format
	file   string   // its name in the folder
	data   []byte   // its valid contents
	beside []string // files linked beside it
	open   func(path string) error
}

// Limits of opening one file.
const (
	longest = time.Second
	slack   = 64 << 20
)

// openMutants damages the bases in turn, opens each mutant and checks the result.
func openMutants(t *testing.T, bases ...base) {
	n := count()
	opened, refused, slowest, largest := 0, 0, time.Duration(0), int64(0)
	for i, b := range bases {
		dir := t.TempDir()
		for _, path := range b.beside {
			if err := os.Symlink(path, filepath.Join(dir, filepath.Base(path))); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(dir, b.file)
		if err := os.WriteFile(path, b.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := measure(func() error { return b.open(path) }); err != nil {
			t.Fatalf("the valid file %s: %v", b.file, err)
		}
		err := filetest.Mutants(b.format, b.data, uint64(i), n/len(bases), func(m filetest.Mutant) bool {
			if err := os.WriteFile(path, m.Data, 0o600); err != nil {
				t.Fatal(err)
			}
			used, took, err := measure(func() error { return b.open(path) })
			slowest, largest = max(slowest, took), max(largest, used)
			var crash *crashError
			switch {
			case errors.As(err, &crash):
				t.Errorf("base %d, %s: %v", i, m.Name, crash)
			case took > longest:
				t.Errorf("base %d, %s: took %v", i, m.Name, took)
			case used > 2*int64(len(m.Data))+slack:
				t.Errorf("base %d, %s: took %d MiB of memory for a file of %d bytes", i, m.Name, used>>20, len(m.Data))
			case err != nil:
				refused++
				if code := fault.CodeOf(err); code != fault.DataLoss && code != fault.Unimplemented &&
					code != fault.Invalid &&
					code != fault.NotFound {
					t.Errorf("base %d, %s: error of code %v: %v", i, m.Name, code, err)
				} else if !strings.Contains(err.Error(), dir) {
					t.Errorf("base %d, %s: the error does not name the file: %v", i, m.Name, err)
				}
			default:
				opened++
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d mutants: %d opened, %d refused; at most %v and %d MiB",
		opened+refused, opened, refused, slowest, largest>>20)
	if refused == 0 {
		t.Error("no mutant is refused: the fields are not those of the format")
	}
}

// crashError reports a panic.
type crashError struct {
	value any
	stack []byte
}

func (e *crashError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// measure runs open. It returns the bytes allocated in total, which bound the memory held at
// any time, and the processor time used, which a busy machine distorts less than elapsed time.
func measure(open func() error) (used int64, took time.Duration, err error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	from := cputime.Process()
	func() {
		defer func() {
			if r := recover(); r != nil {
				err = &crashError{r, debug.Stack()}
			}
		}()
		err = open()
	}()
	took = cputime.Process() - from
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc), took, err
}

// sample is a text to encode with every vocabulary that loads.
const sample = "The quick brown fox\n\n  12345 über ▁ 🦊 <s>"

// openVocab loads a vocabulary and its chat templates, and encodes and decodes.
func openVocab(path string) error {
	m, err := tokenizer.Load(path, "model", "sha256:0")
	if err != nil {
		return err
	}
	v := m.Vocab
	for _, o := range []vocab.Options{{}, {Special: true, BOS: true}} {
		ids, err := v.Encode(sample, o)
		if err != nil {
			continue // the vocabulary lacks a character
		}
		if _, err := v.Decode(ids, vocab.DecodeOptions{}); err != nil {
			return fault.Wrap(fault.Internal, err, "decode what %s encoded", path)
		}
	}
	for id := range min(int32(v.Size()), 64) {
		if _, err := v.Decode([]int32{id, id}, vocab.DecodeOptions{SkipSpecial: true}); err != nil {
			return fault.Wrap(fault.Internal, err, "decode id %d of %s", id, path)
		}
	}
	return nil
}

// touchAll reads the first and last bytes of every tensor, including tensors that no layer
// uses.
func touchAll(source weights.Source, err error) error {
	if err != nil {
		return err
	}
	defer source.Close()
	for _, name := range source.Names() {
		data, err := source.Data(name)
		if err != nil {
			return err
		}
		if len(data) > 0 {
			_ = data[0] + data[len(data)-1]
		}
	}
	return nil
}

func touchGGUF(path string) error {
	g, err := weights.OpenGGUF(path)
	return touchAll(g, err)
}

func touchSafetensors(path string) error {
	s, err := weights.OpenSafetensors(path)
	return touchAll(s, err)
}

// openModel opens a model, loads all its layers as one stage and runs three ids.
func openModel(path string) error {
	f, err := model.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	set := cpu.New(1)
	defer set.Close()
	s, err := model.Load[float32](f, model.Range{Hi: len(f.Spec.Layers)}, set, model.LoadOptions{})
	if err != nil {
		return err
	}
	seq := kvcache.New(s.CacheConfig(2), s.Kernels()).NewSequence()
	if err := seq.Reserve(3); err != nil {
		return fault.Wrap(fault.Internal, err, "reserve 3 positions for %s", path)
	}
	ids := []int32{0, 1, int32(f.Spec.Vocab) - 1}
	_, err = s.Forward(&model.Batch[float32]{IDs: ids, Entries: []model.Entry[float32]{{Seq: seq, Rows: 3, Logits: 1}}})
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "run %s", path)
	}
	return nil
}

// both opens a model and its vocabulary independently and returns the first error.
func both(path string) error {
	return errors.Join(openVocab(path), openModel(path))
}

// folder makes a function that opens a folder accept the path of a file in it.
func folder(open func(dir string) error) func(string) error {
	return func(path string) error { return open(filepath.Dir(path)) }
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestGGUF_MutantsAreRefusedOrOpened(t *testing.T) {
	var bases []base
	for _, path := range [][]string{
		{"models", "tiny", "llama", "model-bf16.gguf"},
		{"models", "tiny", "gpt-oss-mxfp4", "model-bf16.gguf"},
		{"models", "tiny", "gemma3", "model-bf16.gguf"},
		{"models", "stories260K", "stories260K-Q4_0.gguf"},
		{"cases", "gguf", "piece-not-utf8-a.gguf"},
		{"cases", "gguf", "piece-not-utf8-b.gguf"},
	} {
		bases = append(bases, base{format: filetest.GGUF, file: "model.gguf", data: read(t, shared(t, path...)),
			open: func(path string) error { return errors.Join(touchGGUF(path), both(path)) }})
	}
	openMutants(t, bases...)
}

func TestSafetensors_MutantsAreRefusedOrOpened(t *testing.T) {
	var bases []base
	for _, name := range []string{"llama", "gpt2", "mixtral", "gpt-oss-mxfp4"} {
		dir := shared(t, "models", "tiny", name)
		bases = append(bases, base{format: filetest.Safetensors, file: "model.safetensors",
			data:   read(t, filepath.Join(dir, "model.safetensors")),
			beside: []string{filepath.Join(dir, "config.json")},
			open:   folder(func(dir string) error { return errors.Join(touchSafetensors(dir), openModel(dir)) })})
	}
	openMutants(t, bases...)
}

func TestTokenizerJSON_MutantsAreRefusedOrOpened(t *testing.T) {
	texts := append(tokenizers(), string(read(t, shared(t, "models", "tiny", "llama", "tokenizer.json"))))
	var bases []base
	for _, text := range texts {
		bases = append(bases, base{format: filetest.JSON, file: "tokenizer.json", data: []byte(text),
			open: folder(openVocab)})
	}
	openMutants(t, bases...)
}

func TestSentencePiece_MutantsAreRefusedOrOpened(t *testing.T) {
	var bases []base
	for kind := uint64(1); kind <= 4; kind++ {
		bases = append(bases, base{format: filetest.SentencePiece, file: "tokenizer.model",
			data: sentencePiece(kind), open: openVocab})
	}
	openMutants(t, bases...)
}

func TestConfig_MutantsAreRefusedOrOpened(t *testing.T) {
	var bases []base
	add := func(dir, file string, data []byte, beside ...string) {
		b := base{format: filetest.JSON, file: file, data: data, open: folder(both)}
		for _, name := range beside {
			b.beside = append(b.beside, filepath.Join(dir, name))
		}
		bases = append(bases, b)
	}
	for _, name := range []string{"llama", "llama-yarn", "gemma3", "mixtral", "phi3", "gpt2", "gpt-oss"} {
		dir := shared(t, "models", "tiny", name)
		add(dir, "config.json", read(t, filepath.Join(dir, "config.json")),
			"model.safetensors", "tokenizer.json", "tokenizer_config.json")
	}
	dir := shared(t, "models", "tiny", "llama")
	add(dir, "tokenizer_config.json", read(t, filepath.Join(dir, "tokenizer_config.json")),
		"model.safetensors", "tokenizer.json", "config.json")
	generation, err := json.Marshal(map[string]any{"bos_token_id": 1, "eos_token_id": []int{2, 3}, "pad_token_id": 0,
		"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "do_sample": true,
		"max_new_tokens": 20, "min_p": 0.05})
	if err != nil {
		t.Fatal(err)
	}
	add(dir, "generation_config.json", generation,
		"model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json")
	openMutants(t, bases...)
}
