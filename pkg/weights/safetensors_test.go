package weights_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

var sampleTensors = []weights.Named{
	{Name: "b", DType: tensor.F32, Shape: []int{2, 3}, Data: make([]byte, 24)},
	{Name: "a", DType: tensor.BF16, Shape: []int{3}, Data: []byte{1, 2, 3, 4, 5, 6}},
	{Name: `odd "name" <ü>`, DType: tensor.U8, Shape: []int{1}, Data: []byte{9}},
	{Name: "scalar", DType: tensor.F64, Data: make([]byte, 8)},
	{Name: "void", DType: tensor.I64, Shape: []int{5, 0}},
}

func sample(t testing.TB, tensors []weights.Named) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := weights.EncodeSafetensors(&b, tensors, map[string]string{"format": "pt", "a": "1"}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSafetensors_ReadsWhatItWrites(t *testing.T) {
	file := sample(t, sampleTensors)
	reversed := slices.Clone(sampleTensors)
	slices.Reverse(reversed)
	if !bytes.Equal(file, sample(t, reversed)) {
		t.Error("the order of the input changes the bytes")
	}
	s, err := weights.ParseSafetensors("sample", file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range sampleTensors {
		info, ok := s.Info(want.Name)
		data, err := s.Data(want.Name)
		if err != nil || !ok || info.DType != want.DType || !slices.Equal(info.Shape, want.Shape) ||
			!bytes.Equal(data, want.Data) {
			t.Errorf("%s is %+v %v: %v", want.Name, info, data, err)
		}
	}
	// The offset of each tensor is a multiple of its element size.
	if at := bytes.Index(file, []byte{1, 2, 3, 4, 5, 6}); at%2 != 0 {
		t.Errorf("a starts at byte %d", at)
	}
	if length := binary.LittleEndian.Uint64(file); length%8 != 0 {
		t.Errorf("the header takes %d bytes", length)
	}
	if s.Metadata()["format"] != "pt" || !slices.IsSorted(s.Names()) || len(s.Names()) != 5 {
		t.Errorf("metadata %v, names %v", s.Metadata(), s.Names())
	}
	touch(t, s)
	if _, err := s.Data("none"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("a missing tensor: %v", err)
	}
}

func TestSafetensors_WriterRefusesInvalidTensors(t *testing.T) {
	f32 := func(name string, bytes int, shape ...int) weights.Named {
		return weights.Named{Name: name, DType: tensor.F32, Shape: shape, Data: make([]byte, bytes)}
	}
	for name, tensors := range map[string][]weights.Named{
		"twice":         {f32("a", 4, 1), f32("a", 4, 1)},
		"short":         {f32("a", 4, 2)},
		"negative":      {f32("a", 4, -1, -1)},
		"overflow":      {f32("a", 0, 1<<40, 1<<40)},
		"block type":    {{Name: "a", DType: tensor.Q4_0, Shape: []int{32}, Data: make([]byte, 18)}},
		"reserved name": {f32("__metadata__", 4, 1)},
		"name of bytes": {f32("\xff", 4, 1)},
		"dimensions":    {f32("a", 4, 1, 1, 1, 1, 1, 1, 1, 1, 1)},
	} {
		if err := weights.EncodeSafetensors(io.Discard, tensors, nil); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	if err := weights.EncodeSafetensors(io.Discard, nil, map[string]string{"k": "\xff"}); err == nil {
		t.Error("metadata of bytes: written")
	}
}

func TestSafetensors_MalformedFilesAreNamed(t *testing.T) {
	with := func(header string, data int) []byte {
		return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...),
			make([]byte, data)...)
	}
	entry := func(dtype, shape, offsets string) string {
		return `{"x":{"dtype":"` + dtype + `","shape":[` + shape + `],"data_offsets":[` + offsets + `]}}`
	}
	const ok = `"dtype":"F32","shape":[1],"data_offsets":[0,4]`
	for name, c := range map[string]struct {
		file       []byte
		field, msg string
	}{
		"empty":               {nil, "header length", "at least 8 bytes"},
		"long header":         {binary.LittleEndian.AppendUint64(nil, 1<<63), "header length", "does not fit"},
		"no object":           {with("[]", 0), "header", "want "},
		"cut":                 {with(`{"x":{"dtype":"F32"`, 0), "x", "want "},
		"cut escape":          {with(`{"x\`, 0), "header", "want "},
		"bad escape":          {with(`{"x\q":{}}`, 0), "header", "not a string"},
		"name of bytes":       {with("{\"\xff\":{}}", 0), "header", "UTF-8"},
		"trailing bytes":      {with(`{} x`, 0), "header", "follow"},
		"twice":               {with(`{"x":{`+ok+`},"x":{`+ok+`}}`, 4), "x", "twice"},
		"metadata twice":      {with(`{"__metadata__":{},"__metadata__":{}}`, 0), "__metadata__", "twice"},
		"metadata key twice":  {with(`{"__metadata__":{"a":"1","a":"1"}}`, 0), "__metadata__.a", "twice"},
		"metadata number":     {with(`{"__metadata__":{"a":1}}`, 0), "__metadata__.a", "want "},
		"unknown field":       {with(`{"x":{"size":1}}`, 0), "x.size", "unknown"},
		"field twice":         {with(`{"x":{"dtype":"F32","dtype":"F32"}}`, 0), "x.dtype", "twice"},
		"field missing":       {with(`{"x":{"dtype":"F32"}}`, 0), "x", "is missing"},
		"unknown type":        {with(entry("F8_E4M3", "1", "0,1"), 1), "x.dtype", "F8_E4M3"},
		"negative dimension":  {with(entry("F32", "-1", "0,4"), 4), "x.shape", "number"},
		"fraction":            {with(entry("F32", "1.5", "0,4"), 4), "x.shape", "want "},
		"leading zero":        {with(entry("F32", "01", "0,4"), 4), "x.shape", "number"},
		"large dimension":     {with(entry("F32", "99999999999999999999", "0,4"), 4), "x.shape", "number"},
		"overflow":            {with(entry("F32", "4294967296,4294967296,4", "0,4"), 4), "x.shape", "out of range"},
		"many dimensions":     {with(entry("F32", "1,1,1,1,1,1,1,1,1", "0,4"), 4), "x.shape", "at most 8"},
		"one offset":          {with(entry("F32", "1", "0"), 4), "x.data_offsets", "two"},
		"three offsets":       {with(entry("F32", "1", "0,4,8"), 4), "x.data_offsets", "at most 2"},
		"reversed offsets":    {with(entry("F32", "1", "4,0"), 4), "x.data_offsets", "want a range of 4 bytes"},
		"another size":        {with(entry("F32", "1", "0,8"), 8), "x.data_offsets", "want a range of 4 bytes"},
		"past the end":        {with(entry("F32", "2", "0,8"), 4), "data", "8 bytes"},
		"gap":                 {with(entry("F32", "1", "4,8"), 8), "x.data_offsets", "begin at 4"},
		"overlap":             {with(`{"x":{`+ok+`},"y":{`+ok+`}}`, 4), ".data_offsets", "begin at 0"},
		"bytes nobody claims": {with(entry("F32", "1", "0,4"), 5), "data", "holds 5"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := weights.ParseSafetensors("hostile", c.file)
			wantFormat(t, err, c.field, c.msg)
		})
	}
}

// put writes a file into dir.
func put(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

const index = "model.safetensors.index.json"

func TestSafetensors_ReadsShardedModel(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "1.safetensors", sample(t, sampleTensors[:1]))
	put(t, dir, "2.safetensors", sample(t, sampleTensors[1:]))
	names := map[string]string{"b": "1.safetensors"}
	for _, n := range sampleTensors[1:] {
		names[n.Name] = "2.safetensors"
	}
	text, err := json.Marshal(map[string]any{"metadata": map[string]int{"total_size": 39}, "weight_map": names})
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, index, text)
	s, err := weights.OpenSafetensors(dir)
	if err != nil {
		t.Fatal(err)
	}
	touch(t, s)
	if data, err := s.Data("a"); err != nil || !bytes.Equal(data, sampleTensors[1].Data) || len(s.Names()) != 5 {
		t.Errorf("a holds %v of %v: %v", data, s.Names(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// An index that puts a tensor into the wrong file, or into none.
	put(t, dir, index, bytes.Replace(text, []byte(`"b":"1.`), []byte(`"b":"2.`), 1))
	_, err = weights.OpenSafetensors(dir)
	wantFormat(t, err, "weight_map.b", "2.safetensors")
	put(t, dir, index, bytes.Replace(text, []byte(`"b":`), []byte(`"c":`), 1))
	_, err = weights.OpenSafetensors(dir)
	wantFormat(t, err, "weight_map.c", "does not hold")
	put(t, dir, index, bytes.Replace(text, []byte(`"1.`), []byte(`"3.`), 1))
	if _, err = weights.OpenSafetensors(dir); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("a missing shard: %v", err)
	}
	// A tensor in two files.
	put(t, dir, "2.safetensors", sample(t, sampleTensors))
	put(t, dir, index, text)
	_, err = weights.OpenSafetensors(dir)
	wantFormat(t, err, "b", "twice")
}

func TestSafetensors_IndexStaysInsideItsFolder(t *testing.T) {
	for _, file := range []string{"../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", `a\b`,
		"a\x00b"} {
		dir := t.TempDir()
		text, err := json.Marshal(map[string]any{"weight_map": map[string]string{"x": file}})
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir, index, text)
		_, err = weights.OpenSafetensors(dir)
		wantFormat(t, err, "weight_map.x", "plain file name")
	}
	for _, text := range []string{"", "{}", "[]", `{"weight_map":1}`, `{"weight_map":{"a":1}}`,
		strings.Repeat("[", 100_000)} {
		dir := t.TempDir()
		put(t, dir, index, []byte(text))
		_, err := weights.OpenSafetensors(dir)
		wantFormat(t, err, "", "")
	}
}

func TestSafetensors_MutantsGetTypedErrors(t *testing.T) {
	file := sample(t, sampleTensors)
	header := int(binary.LittleEndian.Uint64(file))
	r := rand.New(rand.NewPCG(3, 4))
	pieces := []string{"0", "1", "-1", "8", "9223372036854775807", "9223372036854775808", `"F32"`, `"BF16"`, `"a"`, "{",
		"}", "[", "]", ",", ":", `"`, `\`, "null"}
	refused := 0
	for range 10_000 {
		// Replace a piece of the header by another, keeping its length right.
		at := 8 + r.IntN(header)
		end := min(at+r.IntN(8), 8+header)
		out := slices.Concat(file[:at], []byte(pieces[r.IntN(len(pieces))]), file[end:])
		binary.LittleEndian.PutUint64(out, uint64(header+len(out)-len(file)))
		if r.IntN(10) == 0 {
			out[r.IntN(8)] ^= 1 << r.IntN(8)
		}
		s, err := weights.ParseSafetensors("mutant", out)
		if err != nil {
			refused++
			wantFormat(t, err, "", "")
			continue
		}
		touch(t, s)
	}
	if refused < 5000 || refused == 10_000 {
		t.Errorf("%d of 10000 mutants were refused", refused)
	}
}

func TestWriteFile_IsAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "model.safetensors")
	if err := weights.WriteSafetensors(path, sampleTensors, nil); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err = weights.WriteFile(path, func(w io.Writer) error {
		_, err := io.WriteString(w, "half")
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the old file is gone: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
	if err := weights.WriteSafetensors(filepath.Join(dir, "none", "x"), nil, nil); err == nil {
		t.Error("wrote into a missing folder")
	}
}

func FuzzSafetensors(f *testing.F) {
	f.Add(sample(f, sampleTensors))
	f.Add(sample(f, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := weights.ParseSafetensors("fuzz", data)
		if err != nil {
			wantFormat(t, err, "", "")
			return
		}
		touch(t, s)
	})
}
