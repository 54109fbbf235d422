package weights_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// ggufWriter builds GGUF files field by field, so that tests can damage a field
// they know.
type ggufWriter struct {
	b      []byte
	fields []field
}

// field is the position of a number or of a string's bytes.
type field struct{ at, size int }

func (w *ggufWriter) u32(v uint32) *ggufWriter {
	w.fields = append(w.fields, field{len(w.b), 4})
	w.b = binary.LittleEndian.AppendUint32(w.b, v)
	return w
}

func (w *ggufWriter) u64(v uint64) *ggufWriter {
	w.fields = append(w.fields, field{len(w.b), 8})
	w.b = binary.LittleEndian.AppendUint64(w.b, v)
	return w
}

func (w *ggufWriter) raw(b ...byte) *ggufWriter {
	w.fields = append(w.fields, field{len(w.b), len(b)})
	w.b = append(w.b, b...)
	return w
}

func (w *ggufWriter) str(s string) *ggufWriter { return w.u64(uint64(len(s))).raw([]byte(s)...) }

// start writes magic, version and counts.
func (w *ggufWriter) start(version uint32, tensors, keys uint64) *ggufWriter {
	return w.raw([]byte("GGUF")...).u32(version).u64(tensors).u64(keys)
}

func (w *ggufWriter) tensor(name string, kind uint32, offset uint64, dims ...uint64) *ggufWriter {
	w.str(name).u32(uint32(len(dims)))
	for _, d := range dims {
		w.u64(d)
	}
	return w.u32(kind).u64(offset)
}

// data pads to the alignment and adds n bytes.
func (w *ggufWriter) data(align, n int) []byte {
	for len(w.b)%align != 0 {
		w.b = append(w.b, 0)
	}
	for i := range n {
		w.b = append(w.b, byte(i*37))
	}
	return w.b
}

// sampleGGUF returns a file with every kind of metadata and several tensor types.
func sampleGGUF(version uint32) *ggufWriter {
	w := new(ggufWriter).start(version, 5, 18)
	w.str("general.architecture").u32(8).str("llama")
	w.str("general.alignment").u32(4).u32(64)
	w.str("u8").u32(0).raw(200)
	w.str("i8").u32(1).raw(0xff)
	w.str("u16").u32(2).raw(0xff, 0xff)
	w.str("i16").u32(3).raw(0xfe, 0xff)
	w.str("i32").u32(5).u32(math.MaxUint32)
	w.str("f32").u32(6).u32(math.Float32bits(1.5))
	w.str("bool").u32(7).raw(1)
	w.str("u64").u32(10).u64(math.MaxUint64)
	w.str("i64").u32(11).u64(7)
	w.str("f64").u32(12).u64(math.Float64bits(math.Pi))
	w.str("tokens").u32(9).u32(8).u64(3).str("a").str("").str("\xff\xfe")
	w.str("scores").u32(9).u32(6).u64(2).u32(math.Float32bits(0.5)).u32(0)
	w.str("types").u32(9).u32(5).u64(2).u32(1).u32(math.MaxUint32)
	w.str("flags").u32(9).u32(7).u64(3).raw(1, 0, 1)
	w.str("nested").u32(9).u32(9).u64(2).u32(5).u64(1).u32(9).u32(8).u64(1).str("x")
	w.str("empty").u32(9).u32(4).u64(0)
	w.tensor("b", 0, 0, 3, 2) // 24 bytes
	w.tensor("a", 2, 64, 64)  // two Q4_0 blocks: 36 bytes
	w.tensor("k", 12, 128, 256)
	w.tensor("scalar", 0, 320)
	w.tensor("void", 1, 384, 0, 4)
	w.data(64, 324)
	return w
}

func TestGGUF_ReadsEveryKind(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		g, err := weights.ParseGGUF("sample", sampleGGUF(version).b)
		if err != nil {
			t.Fatal(err)
		}
		m := g.Meta()
		if v, ok := m.String("general.architecture"); !ok || v != "llama" {
			t.Errorf("architecture is %q %v", v, ok)
		}
		for key, want := range map[string]uint64{"u8": 200, "u16": 65535, "i64": 7, "u64": math.MaxUint64,
			"general.alignment": 64} {
			if v, ok := m.Uint(key); !ok || v != want {
				t.Errorf("%s is %d %v, want %d", key, v, ok, want)
			}
		}
		for key, want := range map[string]any{"i8": int64(-1), "i16": int64(-2), "i32": int64(-1)} {
			if v, _ := m.Value(key); v != want {
				t.Errorf("%s is %v, want %v", key, v, want)
			}
			if v, ok := m.Uint(key); ok {
				t.Errorf("negative %s is %d", key, v)
			}
		}
		if v, ok := m.Float("f32"); !ok || v != 1.5 {
			t.Errorf("f32 is %v", v)
		}
		if v, ok := m.Float("f64"); !ok || v != math.Pi {
			t.Errorf("f64 is %v", v)
		}
		if v, ok := m.Bool("bool"); !ok || !v {
			t.Errorf("bool is %v", v)
		}
		if v, ok := m.Strings("tokens"); !ok || !slices.Equal(v, []string{"a", "", "\xff\xfe"}) {
			t.Errorf("tokens are %q", v)
		}
		if v, ok := m.Floats("scores"); !ok || !slices.Equal(v, []float32{0.5, 0}) {
			t.Errorf("scores are %v", v)
		}
		if v, ok := m.Ints("types"); !ok || !slices.Equal(v, []int64{1, -1}) {
			t.Errorf("types are %v", v)
		}
		if v, ok := m.Bools("flags"); !ok || !slices.Equal(v, []bool{true, false, true}) {
			t.Errorf("flags are %v", v)
		}
		if v, _ := m.Value("nested"); len(v.([]any)) != 2 {
			t.Errorf("nested is %v", v)
		}
		if m.Has("none") || len(m.Keys()) != 18 {
			t.Errorf("keys are %v", m.Keys())
		}
		if !slices.Equal(g.Names(), []string{"a", "b", "k", "scalar", "void"}) {
			t.Errorf("tensors are %v", g.Names())
		}
		if info, _ := g.Info("b"); !slices.Equal(info.Shape, []int{2, 3}) || info.DType != tensor.F32 ||
			info.Bytes != 24 {
			t.Errorf("b is %+v", info)
		}
		if data, err := g.Data("a"); err != nil || len(data) != 36 || data[0] != 64*37&255 {
			t.Errorf("a holds %v: %v", data, err)
		}
		touch(t, g)
		if _, err := g.Data("none"); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("a missing tensor: %v", err)
		}
	}
}

// touch decodes every small tensor.
func touch(t *testing.T, s weights.Source) {
	t.Helper()
	for _, name := range s.Names() {
		info, ok := s.Info(name)
		data, err := s.Data(name)
		if err != nil || !ok || int64(len(data)) != info.Bytes {
			t.Fatalf("%s has %d bytes, want %d: %v", name, len(data), info.Bytes, err)
		}
		if n := info.Elements(); n < 1<<16 {
			tensor.Dequantize(make([]float32, n), data, info.DType)
		}
	}
}

// wantFormat checks that err is a *FormatError with the given field and a part of the message.
func wantFormat(t *testing.T, err error, inField, inMsg string) {
	t.Helper()
	var format *weights.FormatError
	if !errors.As(err, &format) {
		t.Errorf("got %v (%T), want a FormatError", err, err)
		return
	}
	if !strings.Contains(format.Field, inField) || !strings.Contains(format.Msg, inMsg) {
		t.Errorf("got %v, want field %q and message %q", err, inField, inMsg)
	}
	if len(err.Error()) > 1000 {
		t.Errorf("the error takes %d bytes", len(err.Error()))
	}
}

func TestGGUF_MalformedFilesAreNamed(t *testing.T) {
	w := func() *ggufWriter { return new(ggufWriter) }
	one := func(kind uint32, offset uint64, dims ...uint64) []byte {
		return w().start(3, 1, 0).tensor("blk.0.x", kind, offset, dims...).data(32, 64)
	}
	long := strings.Repeat("k", 70_000)
	for name, c := range map[string]struct {
		file       []byte
		field, msg string
	}{
		"empty":            {nil, "magic", "0 are left"},
		"another format":   {[]byte("GGML\x03\x00\x00\x00"), "magic", "GGML"},
		"version 1":        {w().start(1, 0, 0).b, "version", "1 is not"},
		"big-endian":       {w().start(3<<24, 0, 0).b, "version", "big-endian"},
		"too many keys":    {w().start(3, 0, 1<<60).b, "counts", "do not fit"},
		"too many tensors": {w().start(3, 1<<60, 0).b, "counts", "do not fit"},
		"key twice": {w().start(3, 0, 2).str("k").u32(7).raw(1).str("k").u32(7).raw(1).data(1, 9), "k",
			"twice"},
		"empty key":       {w().start(3, 0, 1).str("").u32(4).u32(0).b, "metadata key", "got 0"},
		"long key":        {w().start(3, 0, 1).str(long).u32(4).u32(0).b, "metadata key", "got 70000"},
		"key of bytes":    {w().start(3, 0, 1).str("\xff").u32(4).u32(0).b, "metadata key", "UTF-8"},
		"unknown kind":    {w().start(3, 0, 1).str("key").u32(13).u32(0).b, "key", "type 13"},
		"unknown element": {w().start(3, 0, 1).str("key").u32(9).u32(99).u64(1).b, "key", "type 99"},
		"endless string": {w().start(3, 0, 1).str("key").u32(8).u64(math.MaxUint64).b, "key",
			"want 18446744073709551615 bytes"},
		"endless array":   {w().start(3, 0, 1).str("key").u32(9).u32(4).u64(1 << 62).b, "key", "do not fit"},
		"endless strings": {w().start(3, 0, 1).str("key").u32(9).u32(8).u64(1 << 61).b, "key", "do not fit"},
		"deep arrays": {w().start(3, 0,
			1).str("key").u32(9).u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(4).u64(
			0).data(1, 64), "key", "nested"},
		"alignment 0": {w().start(3, 0, 1).str("general.alignment").u32(4).u32(0).b, "general.alignment",
			"power of two"},
		"alignment 48": {w().start(3, 0, 1).str("general.alignment").u32(4).u32(48).b, "general.alignment",
			"power of two"},
		"alignment text": {w().start(3, 0, 1).str("general.alignment").u32(8).str("32").b, "general.alignment",
			"power of two"},
		"tensor twice": {w().start(3, 2, 0).tensor("t", 0, 0, 1).tensor("t", 0, 32, 1).data(32, 64), "t",
			"twice"},
		"removed tensor type": {one(4, 0, 32), "blk.0.x", "Q4_2 (4) is not supported"},
		"unknown tensor type": {one(99, 0, 32), "blk.0.x", "type 99 is not supported"},
		"five dimensions":     {one(0, 0, 1, 1, 1, 1, 1), "blk.0.x", "got 5"},
		"overflow":            {one(0, 0, 1<<40, 1<<40), "blk.0.x", "too large"},
		"huge dimension":      {one(0, 0, math.MaxUint64), "blk.0.x", "too large"},
		"part of a block":     {one(2, 0, 33), "blk.0.x", "whole blocks"},
		"scalar block":        {one(2, 0), "blk.0.x", "whole blocks"},
		"unaligned offset":    {one(0, 4, 4), "blk.0.x", "multiple of 32"},
		"past the end":        {one(0, 32, 9), "blk.0.x", "outside"},
		"far past the end":    {one(0, math.MaxUint64-31, 1), "blk.0.x", "outside"},
		"overlap": {w().start(3, 2, 0).tensor("t", 0, 0, 9).tensor("u", 0, 32, 1).data(32, 64), "u",
			"overlap"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := weights.ParseGGUF("hostile", c.file)
			wantFormat(t, err, c.field, c.msg)
		})
	}
	_, err := weights.ParseGGUF("new", one(99, 0, 32))
	if fault.CodeOf(err) != fault.Unimplemented {
		t.Errorf("an unknown type is %v", fault.CodeOf(err))
	}
}

// allocated returns how many bytes f allocates in total, including garbage.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// manyKeys returns n different JSON members.
func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"x%d":"",`, i)
	}
	return b.String()
}

func TestParse_HeaderMemoryIsBounded(t *testing.T) {
	const size = 20 << 20
	array := func(kind uint32, count uint64) []byte {
		return append(new(ggufWriter).start(3, 0, 1).str("key").u32(9).u32(kind).u64(count).b, make([]byte, size)...)
	}
	tensors := new(ggufWriter)
	tensors.start(3, size/28, 0)
	for i := range size / 28 {
		tensors.b = append(tensors.b, 4, 0, 0, 0, 0, 0, 0, 0)
		tensors.b = append(tensors.b, "abcdefghijklmnop"[i&15], "abcdefghijklmnop"[i>>4&15],
			"abcdefghijklmnop"[i>>8&15], byte(i>>12&127))
		tensors.b = append(tensors.b, make([]byte, 16)...)
	}
	safe := func(header string) []byte {
		return append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	}
	for name, file := range map[string][]byte{
		"bytes become integers": array(0, size),
		"empty strings":         array(8, size/8),
		"empty arrays":          array(9, size/12),
		"tensors":               tensors.b,
		"entries":               safe("{" + strings.Repeat(`"":{},`, size/6)),
		"shape":                 safe(`{"a":{"shape":[` + strings.Repeat("0,", size/2)),
		"nesting":               safe(strings.Repeat(`{"":`, size/4)),
		"metadata":              safe(`{"__metadata__":{` + manyKeys(size/16)),
		"escapes":               safe(`{"__metadata__":{` + strings.ReplaceAll(manyKeys(size/16), "x", `\n`)),
		"name":                  safe(`{"` + strings.Repeat("x", size) + `":1}`),
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			var total uint64
			took := time.Hour // the least of several times, since other programs disturb the processor's caches
			for try := 0; try < 5 && took > time.Second; try++ {
				start := cputime.Process()
				total = allocated(func() {
					if bytes.HasPrefix(file, []byte("GGUF")) {
						_, err = weights.ParseGGUF("hostile", file)
					} else {
						_, err = weights.ParseSafetensors("hostile", file)
					}
				})
				took = min(took, cputime.Process()-start)
				t.Logf("%v of processor time", took)
			}
			// The file itself, mapped, is counted once.
			if limit := uint64(len(file)) + 64<<20; total > limit {
				t.Errorf("%d MiB were allocated, more than %d MiB", total>>20, limit>>20)
			}
			if took > time.Second && !raceEnabled {
				t.Errorf("it took %v", took)
			}
			if err != nil {
				wantFormat(t, err, "", "")
			}
		})
	}
}

// boundary lists values for which checks are often wrong.
var boundary = []uint64{0, 1, 2, 3, 31, 32, 33, 255, 256, 1<<31 - 1, 1 << 31, math.MaxUint32, 1 << 33, 1 << 60, 1 << 61,
	1<<62 - 1, 1 << 62, 1<<63 - 1, 1 << 63, math.MaxUint64 - 31, math.MaxUint64}

// mutate damages one to three fields, or cuts the file.
func mutate(r *rand.Rand, file []byte, fields []field) []byte {
	out := bytes.Clone(file)
	for range 1 + r.IntN(3) {
		f := fields[r.IntN(len(fields))]
		v := boundary[r.IntN(len(boundary))]
		switch r.IntN(5) {
		case 0:
			v = r.Uint64()
		case 1:
			v = uint64(len(file)) - uint64(r.IntN(64))
		}
		var raw [8]byte
		binary.LittleEndian.PutUint64(raw[:], v)
		copy(out[f.at:f.at+f.size], raw[:])
	}
	if r.IntN(20) == 0 {
		out = out[:r.IntN(len(out))]
	}
	return out
}

func TestGGUF_FieldMutantsGetTypedErrors(t *testing.T) {
	w := sampleGGUF(3)
	r := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for i := range 10_000 {
		start := cputime.Process()
		g, err := weights.ParseGGUF("mutant", mutate(r, w.b, w.fields))
		if took := cputime.Process() - start; took > time.Second && !raceEnabled {
			t.Fatalf("mutant %d took %v", i, took)
		}
		if err != nil {
			refused++
			wantFormat(t, err, "", "")
			continue
		}
		touch(t, g)
	}
	if refused < 5000 || refused == 10_000 {
		t.Errorf("%d of 10000 mutants were refused", refused)
	}
}

func TestOpenGGUF_RefusesNonRegularFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := weights.OpenGGUF(filepath.Join(dir, "none")); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := weights.OpenGGUF(dir); fault.CodeOf(err) != fault.DataLoss {
		t.Errorf("a folder: %v", err)
	}
	path := filepath.Join(dir, "a.gguf")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := weights.OpenGGUF(path)
	wantFormat(t, err, "magic", "")
	if err := os.WriteFile(path, sampleGGUF(3).b, 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := weights.OpenGGUF(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.Close(), g.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if _, err := g.Data("a"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("data after close: %v", err)
	}
}

func FuzzGGUF(f *testing.F) {
	f.Add(sampleGGUF(2).b)
	f.Add(sampleGGUF(3).b)
	f.Add(new(ggufWriter).start(3, 0, 0).b)
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := weights.ParseGGUF("fuzz", data)
		if err != nil {
			wantFormat(t, err, "", "")
			return
		}
		touch(t, g)
	})
}
