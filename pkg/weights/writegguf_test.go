package weights_test

import (
	"bytes"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

func streamed(name string, d tensor.DType, shape []int, data []byte) weights.Streamed {
	return weights.Streamed{Info: weights.Info{Name: name, DType: d, Shape: shape, Bytes: int64(len(data))},
		Write: func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		}}
}

// TestStreamGGUF_ReadsBack writes every type of value and reads it, also after it was copied as Encoded.
func TestStreamGGUF_ReadsBack(t *testing.T) {
	values := []struct {
		write, read any
	}{
		{uint8(200), int64(200)},
		{int8(-3), int64(-3)},
		{uint16(65535), int64(65535)},
		{int16(-300), int64(-300)},
		{
			uint32(math.MaxUint32),
			int64(math.MaxUint32),
		},
		{int32(-7), int64(-7)},
		{uint64(math.MaxUint64), uint64(math.MaxUint64)},
		{int64(math.MinInt64), int64(math.MinInt64)},
		{float32(0.1), float64(float32(0.1))},
		{0.1, 0.1},
		{true, true},
		{"text\x00ß", "text\x00ß"},
		{[]string{"", "b"}, []string{"", "b"}},
		{[]bool{true, false}, []bool{true, false}},
		{
			[]uint8{1, 255},
			[]int64{1, 255},
		},
		{[]int8{-1}, []int64{-1}},
		{[]uint16{9}, []int64{9}},
		{[]int16{-9}, []int64{-9}},
		{[]uint32{1 << 31}, []int64{1 << 31}},
		{[]int32{-1, 2}, []int64{-1, 2}},
		{[]uint64{5}, []int64{5}},
		{[]int64{-5}, []int64{-5}},
		{[]float32{1.5}, []float32{1.5}},
		{[]float64{2.5}, []float32{2.5}},
		{[]string{}, []string{}},
	}
	var fields []weights.Field
	for i, v := range values {
		fields = append(fields, weights.Field{Key: strings.Repeat("k", i+1), Value: v.write})
	}
	tensors := []weights.Streamed{
		streamed("b.weight", tensor.Q4_0, []int{3, 32}, bytes.Repeat([]byte{1, 2, 3}, 18)),
		streamed("a", tensor.F32, []int{5}, bytes.Repeat([]byte{7}, 20)),
		streamed("c.weight", tensor.BF16, []int{2, 1, 4}, bytes.Repeat([]byte{9}, 16)),
	}
	for round := range 2 {
		var file bytes.Buffer
		if err := weights.StreamGGUF(&file, fields, tensors); err != nil {
			t.Fatal(err)
		}
		g, err := weights.ParseGGUF("test", file.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			if got, _ := g.Meta().Value(fields[i].Key); !reflect.DeepEqual(got, v.read) {
				t.Errorf("round %d: %T %v is read as %T %v", round, v.write, v.write, got, got)
			}
			fields[i].Value, _ = g.Meta().Encoded(fields[i].Key)
		}
		layout, err := weights.LayoutGGUF(fields, []weights.Info{tensors[0].Info, tensors[1].Info, tensors[2].Info})
		if err != nil || layout.Size != int64(file.Len()) {
			t.Errorf("layout of %d bytes, %v; the file has %d", layout.Size, err, file.Len())
		}
		for i, want := range tensors {
			info, _ := g.Info(want.Name)
			data, err := g.Data(want.Name)
			if err != nil || !reflect.DeepEqual(info, want.Info) {
				t.Fatalf("%+v, %v, want %+v", info, err, want.Info)
			}
			var raw bytes.Buffer
			if err := want.Write(&raw); err != nil || !bytes.Equal(data, raw.Bytes()) {
				t.Errorf("%s: other bytes, %v", want.Name, err)
			}
			if at := layout.Offsets[i]; at%32 != 0 || !bytes.Equal(file.Bytes()[at:at+want.Bytes], data) {
				t.Errorf("%s is not at byte %d", want.Name, at)
			}
		}
	}
}

func TestStreamGGUF_Errors(t *testing.T) {
	plain := streamed("a", tensor.F32, []int{2}, make([]byte, 8))
	wrong := plain
	wrong.Bytes = 4
	short := plain
	short.Write = func(io.Writer) error { return nil }
	for name, c := range map[string]struct {
		fields  []weights.Field
		tensors []weights.Streamed
		want    string
	}{
		"empty key":    {fields: []weights.Field{{Key: "", Value: true}}, want: "no valid key"},
		"key twice":    {fields: []weights.Field{{Key: "a", Value: true}, {Key: "a", Value: true}}, want: "key a occurs twice"},
		"alignment":    {fields: []weights.Field{{Key: "general.alignment", Value: uint32(64)}}, want: "alignment"},
		"value":        {fields: []weights.Field{{Key: "a", Value: 1}}, want: "a: the format has no type for int"},
		"tensor twice": {tensors: []weights.Streamed{plain, plain}, want: `"a" occurs twice`},
		"long name":    {tensors: []weights.Streamed{streamed(strings.Repeat("n", 64), tensor.F32, []int{1}, make([]byte, 4))}, want: "no valid tensor name"},
		"no shape":     {tensors: []weights.Streamed{streamed("a", tensor.F32, nil, make([]byte, 4))}, want: "dimensions"},
		"zero":         {tensors: []weights.Streamed{streamed("a", tensor.F32, []int{0}, nil)}, want: "out of range"},
		"block":        {tensors: []weights.Streamed{streamed("a", tensor.Q4_0, []int{2, 16}, make([]byte, 18))}, want: "bytes for shape"},
		"size":         {tensors: []weights.Streamed{wrong}, want: "4 bytes for shape"},
		"type":         {tensors: []weights.Streamed{streamed("a", tensor.Bool, []int{4}, make([]byte, 4))}, want: "no type BOOL"},
		"short":        {tensors: []weights.Streamed{short}, want: "want 8 bytes, got 0"},
	} {
		err := weights.StreamGGUF(io.Discard, c.fields, c.tensors)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
