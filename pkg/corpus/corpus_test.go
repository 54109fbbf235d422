package corpus_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestMain(m *testing.M) { leak.Main(m) }

// end ends documents in these tests, and begin begins them. Other ids are bytes.
const end, begin = 256, 257

// byteEncoder has one id for each byte. After budget texts it fails.
type byteEncoder struct {
	budget  *atomic.Int64
	streams atomic.Int64
}

var errKilled = errors.New("killed")

func (e *byteEncoder) spend() error {
	if e.budget != nil && e.budget.Add(-1) < 0 {
		return errKilled
	}
	return nil
}

func (e *byteEncoder) Encode(_ context.Context, texts []string) ([][]uint32, error) {
	var out [][]uint32
	for _, text := range texts {
		if err := e.spend(); err != nil {
			return nil, err
		}
		var ids []uint32
		for _, b := range []byte(text) {
			ids = append(ids, uint32(b))
		}
		out = append(out, ids)
	}
	return out, nil
}

func (e *byteEncoder) EncodeStream(ctx context.Context, text io.Reader, emit func([]uint32) error) error {
	e.streams.Add(1)
	buffer := make([]byte, 100_001)
	for {
		n, err := text.Read(buffer)
		ids, _ := e.Encode(ctx, []string{string(buffer[:n])})
		if ids == nil {
			return errKilled
		}
		if err := emit(ids[0]); err != nil {
			return err
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
	}
}

func config(dir string, o corpus.Options, inputs ...string) corpus.BuildConfig {
	found, err := corpus.FindInputs(inputs)
	if err != nil {
		panic(err)
	}
	if o.ShardTokens == 0 {
		o.ShardTokens = 1000
	}
	if o.Field == "" {
		o.Field = "text"
	}
	return corpus.BuildConfig{
		Dir:     dir,
		Inputs:  found,
		Encoder: &byteEncoder{},
		Workers: 3,
		Options: o,
		Vocabulary: corpus.Vocabulary{
			Family: "bytes",
			Size:   258,
			SHA256: strings.Repeat("ab", 32),
			End:    end,
			Begin:  begin,
		},
	}
}

func build(t *testing.T, c corpus.BuildConfig) *corpus.Data {
	t.Helper()
	if _, err := corpus.Build(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	d, err := corpus.Open(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// texts returns the documents of token data.
func texts(t *testing.T, d *corpus.Data) []string {
	t.Helper()
	var out []string
	for i := range d.Documents() {
		s, from, to := d.Document(i)
		ids, err := s.Read(nil, from, to)
		if err != nil {
			t.Fatal(err)
		}
		if ids[len(ids)-1] != end {
			t.Fatalf("document %d ends with id %d", i, ids[len(ids)-1])
		}
		var text []byte
		for _, id := range ids[:len(ids)-1] {
			text = append(text, byte(id))
		}
		out = append(out, string(text))
	}
	return out
}

func write(t *testing.T, path string, text []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func gz(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zst(t *testing.T, text string) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll([]byte(text), nil)
}

// folder writes inputs of every kind and returns their documents in order.
func folder(t *testing.T) (dir string, want []string) {
	t.Helper()
	dir = t.TempDir()
	long := strings.Repeat("a long text, ", 100_000) + "é" // is streamed
	write(t, filepath.Join(dir, "a.txt"), []byte("first\ntext\n"))
	write(t, filepath.Join(dir, "b.txt.gz"), gz(t, "packed"))
	write(
		t,
		filepath.Join(dir, "c", "d.jsonl"),
		[]byte(`{"text": "one", "x": [1]}`+"\n\n"+`{"x": {}, "text": "t\u00e9wo\n"}`),
	)
	var lines strings.Builder
	want = append(want, "first\ntext\n", "packed", "one", "téwo\n")
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		text := fmt.Sprintf("line %d%s", i, strings.Repeat(" word", r.IntN(20)))
		fmt.Fprintf(&lines, "{\"text\": %q}\n", text)
		want = append(want, text)
	}
	write(t, filepath.Join(dir, "c", "e.jsonl.zst"), zst(t, lines.String()))
	write(t, filepath.Join(dir, "f.md"), []byte(long))
	write(t, filepath.Join(dir, "g.bin"), []byte{0xff})
	return dir, append(want, long)
}

func TestBuild_ReadsEveryKindOfInputInOrder(t *testing.T) {
	in, want := folder(t)
	c := config(t.TempDir(), corpus.Options{}, in)
	d := build(t, c)
	if got := texts(t, d); !slices.Equal(got, want) {
		t.Fatalf("%d documents, want %d", len(got), len(want))
	}
	if n := c.Encoder.(*byteEncoder).streams.Load(); n != 1 {
		t.Errorf("%d texts were streamed, want 1", n)
	}
	if err := d.Verify(); err != nil {
		t.Error(err)
	}
	if len(d.Index.Shards) < 10 || d.Index.Bits != 16 || d.Index.TextBytes != int64(len(strings.Join(want, ""))) {
		t.Errorf("%d shards of %d bits with %d bytes of text", len(d.Index.Shards), d.Index.Bits, d.Index.TextBytes)
	}
	if _, err := corpus.Build(context.Background(), c); fault.CodeOf(err) != fault.AlreadyExists {
		t.Errorf("a second build: %v", err)
	}
}

func TestBuild_LinesOfTexts(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "a.log"), []byte("one\r\n\n two \n\t\nthree"))
	d := build(t, config(t.TempDir(), corpus.Options{Lines: true}, path))
	if got := texts(t, d); !slices.Equal(got, []string{"one", " two ", "three"}) {
		t.Errorf("documents are %q", got)
	}
}

// contents returns the files of a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(text)
	}
	return out
}

// TestBuild_KilledBuildsContinueToTheSameBytes fails builds after random numbers of texts and starts them again,
// with bad documents among the others.
func TestBuild_KilledBuildsContinueToTheSameBytes(t *testing.T) {
	in, _ := folder(t)
	write(
		t,
		filepath.Join(in, "c", "bad.jsonl"),
		[]byte("{\"text\": 1}\n{\"text\": \"\"}\n{\n{\"text\": \"good\"}\n{}\n"),
	)
	write(t, filepath.Join(in, "z.txt"), []byte{'a', 0xff})
	o := corpus.Options{Skip: true, ShardTokens: 3000}
	calm := build(t, config(t.TempDir(), o, in))
	if want := (corpus.Skipped{NotUTF8: 1, NotJSON: 1, NoField: 2, Empty: 1}); calm.Index.Skipped != want {
		t.Errorf("skipped %+v, want %+v", calm.Index.Skipped, want)
	}
	dir, killed := t.TempDir(), 0
	r := rand.New(rand.NewPCG(3, 4))
	for {
		c := config(dir, o, in)
		c.Workers = 1 + r.IntN(4)
		budget := &atomic.Int64{}
		budget.Store(int64(r.IntN(1500)))
		c.Encoder = &byteEncoder{budget: budget}
		_, err := corpus.Build(context.Background(), c)
		if err == nil {
			break
		}
		if !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		killed++
	}
	if killed < 2 {
		t.Errorf("%d builds were killed", killed)
	}
	got, want := contents(t, dir), contents(t, calm.Dir)
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s differs after %d kills", name, killed)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

func TestBuild_ContinuesNoOtherBuild(t *testing.T) {
	in, _ := folder(t)
	c := config(t.TempDir(), corpus.Options{}, in)
	budget := &atomic.Int64{}
	c.Encoder = &byteEncoder{budget: budget}
	// A build can be killed before its first shard is complete. Then there is nothing to continue.
	for saved := false; !saved; {
		budget.Store(1000)
		if _, err := corpus.Build(context.Background(), c); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		_, err := os.Stat(filepath.Join(c.Dir, "build.json"))
		saved = err == nil
	}
	for name, change := range map[string]func(*corpus.BuildConfig){
		"another field":      func(c *corpus.BuildConfig) { c.Options.Field = "body" },
		"another vocabulary": func(c *corpus.BuildConfig) { c.Vocabulary.SHA256 = strings.Repeat("00", 32) },
		"a changed input":    func(c *corpus.BuildConfig) { c.Inputs[2].Time++ },
	} {
		other := config(c.Dir, corpus.Options{}, in)
		change(&other)
		if _, err := corpus.Build(context.Background(), other); fault.CodeOf(err) != fault.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBuild_BadDocumentsAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		file, text string
		line       int64
		want       string
	}{
		"a line that is not UTF-8":   {"a.jsonl", "{\"text\": \"x\"}\n{\"text\": \"\xff\"}\n", 2, "not UTF-8"},
		"a line that is not JSON":    {"a.jsonl", "{\"text\": \"x\"}\n\n{\"text\"\n", 3, "unexpected end"},
		"a line without the field":   {"a.jsonl", "{\"body\": \"x\"}\n", 1, `field "text"`},
		"a field that is no string":  {"a.jsonl", "{\"text\": null}\n", 1, `field "text"`},
		"an empty field":             {"a.jsonl", "{\"text\": \"\"}\n", 1, "empty"},
		"an empty file":              {"a.txt", "", 0, "empty"},
		"a file that is not UTF-8":   {"a.txt", "abc\xffde", 0, "byte 3: not UTF-8"},
		"a cut character at the end": {"a.txt", strings.Repeat("é", 600_000) + "\xc3", 0, "byte 1200000: not UTF-8"},
		"a gzip file that is none":   {"a.txt.gz", "abc", 0, "decompress"},
		"a zstd file that is cut":    {"a.txt.zst", string(zst(t, strings.Repeat("abc", 1000))[:12]), 0, "read"},
	} {
		dir := t.TempDir()
		path := write(t, filepath.Join(dir, c.file), []byte(c.text))
		_, err := corpus.Build(context.Background(), config(filepath.Join(dir, "out"), corpus.Options{}, path))
		var bad *corpus.InputError
		if !errors.As(err, &bad) || bad.File != path || bad.Line != c.line || !strings.Contains(err.Error(), c.want) ||
			fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBuild_CancelEndsIt(t *testing.T) {
	in, _ := folder(t)
	ctx, cancel := context.WithCancel(context.Background())
	c := config(t.TempDir(), corpus.Options{}, in)
	c.Progress = func(p corpus.Progress) {
		if p.Documents == 700 {
			cancel()
		}
	}
	if _, err := corpus.Build(ctx, c); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
