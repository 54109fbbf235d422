package vocab_test

import (
	"encoding/binary"
	"math"
	"os"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

// meta is GGUF metadata as the file holds it.
type meta map[string]any

func (m meta) String(k string) (string, bool)    { v, ok := m[k].(string); return v, ok }
func (m meta) Uint(k string) (uint64, bool)      { v, ok := m[k].(uint64); return v, ok }
func (m meta) Bool(k string) (bool, bool)        { v, ok := m[k].(bool); return v, ok }
func (m meta) Strings(k string) ([]string, bool) { v, ok := m[k].([]string); return v, ok }
func (m meta) Floats(k string) ([]float32, bool) { v, ok := m[k].([]float32); return v, ok }
func (m meta) Ints(k string) ([]int64, bool)     { v, ok := m[k].([]int64); return v, ok }

// readMeta reads a GGUF file's metadata, enough of it for vocabularies.
func readMeta(t testing.TB, path string) meta {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := 4 + 4 + 8
	u32 := func() uint32 { at += 4; return binary.LittleEndian.Uint32(data[at-4:]) }
	u64 := func() uint64 { at += 8; return binary.LittleEndian.Uint64(data[at-8:]) }
	str := func() string { n := int(u64()); at += n; return string(data[at-n : at]) }
	var value func(kind uint32) any
	value = func(kind uint32) any {
		switch kind {
		case 0, 1, 7:
			at++
			if kind == 7 {
				return data[at-1] != 0
			}
			return uint64(data[at-1])
		case 2, 3:
			at += 2
			return uint64(binary.LittleEndian.Uint16(data[at-2:]))
		case 4, 5:
			return uint64(u32())
		case 6:
			return math.Float32frombits(u32())
		case 8:
			return str()
		case 9:
			of, n := u32(), int(u64())
			var s []string
			var f []float32
			var i []int64
			for range n {
				switch x := value(of).(type) {
				case string:
					s = append(s, x)
				case float32:
					f = append(f, x)
				case uint64:
					i = append(i, int64(int32(uint32(x))))
				}
			}
			switch of {
			case 8:
				return s
			case 6:
				return f
			}
			return i
		default:
			return u64()
		}
	}
	m := meta{}
	for n := u64(); n > 0; n-- {
		k := str()
		m[k] = value(u32())
	}
	return m
}
