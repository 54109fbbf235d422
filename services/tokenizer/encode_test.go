package tokenizer_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

func TestService_EncodeBatch(t *testing.T) {
	_, c := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t)})
	texts := []string{"the quick brown fox", "", "fox <|im_end|>", "ü the"}
	r, err := c.EncodeBatch(t.Context(), &tokenizerv1.EncodeBatchRequest{Texts: texts, Spans: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range r.GetEncodings() {
		one, err := c.Encode(t.Context(), &tokenizerv1.EncodeRequest{Text: texts[i], Spans: true})
		if err != nil || !slices.Equal(one.GetIds(), e.GetIds()) || !slices.Equal(one.GetStarts(), e.GetStarts()) {
			t.Errorf("%q alone is %v, in a batch %v, %v", texts[i], one, e, err)
		}
		at := uint32(0)
		for k := range e.GetIds() {
			if e.GetStarts()[k] > at || e.GetEnds()[k] < e.GetStarts()[k] {
				t.Errorf("%q: pieces leave a gap: %v %v", texts[i], e.GetStarts(), e.GetEnds())
			}
			at = e.GetEnds()[k]
		}
		if int(at) != len(texts[i]) {
			t.Errorf("%q: pieces end at %d", texts[i], at)
		}
	}
	if n := len(r.GetEncodings()); n != len(texts) {
		t.Errorf("%d encodings", n)
	}
}

func TestService_TruncationAndPadding(t *testing.T) {
	_, c := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t),
		Chat: tokenizer.Chat{Special: map[string]string{"pad_token": "<|im_start|>"}}})
	texts := []string{"the quick brown fox, the user", "the"}
	plain, err := c.EncodeBatch(t.Context(), &tokenizerv1.EncodeBatchRequest{Texts: texts})
	if err != nil {
		t.Fatal(err)
	}
	long, short := plain.GetEncodings()[0].GetIds(), plain.GetEncodings()[1].GetIds()
	cut := func(side tokenizerv1.Side) *tokenizerv1.EncodeResponse {
		r, err := c.Encode(t.Context(),
			&tokenizerv1.EncodeRequest{Text: texts[0], Truncation: &tokenizerv1.Truncation{MaxTokens: 3, Side: side}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := cut(0); !slices.Equal(r.GetIds(), long[:3]) || int(r.GetLeftOut()) != len(long)-3 {
		t.Errorf("cut at the end: %v of %v", r, long)
	}
	if r := cut(tokenizerv1.Side_SIDE_LEFT); !slices.Equal(r.GetIds(), long[len(long)-3:]) {
		t.Errorf("cut at the beginning: %v of %v", r, long)
	}
	end, id := len(long), uint32(7)
	for name, p := range map[string]struct {
		padding *tokenizerv1.Padding
		length  int
		id      uint32
	}{
		"longest":  {&tokenizerv1.Padding{}, end, 0},
		"multiple": {&tokenizerv1.Padding{Multiple: 8, Id: &id}, (end + 7) / 8 * 8, 7},
		"length":   {&tokenizerv1.Padding{Length: 40, Side: tokenizerv1.Side_SIDE_LEFT}, 40, 0},
	} {
		r, err := c.EncodeBatch(t.Context(),
			&tokenizerv1.EncodeBatchRequest{Texts: texts, Padding: p.padding, Spans: true})
		if err != nil {
			t.Fatal(err)
		}
		e := r.GetEncodings()[1]
		want := slices.Repeat([]uint32{p.id}, p.length-len(short))
		if p.padding.GetSide() == tokenizerv1.Side_SIDE_LEFT {
			want = append(want, short...)
		} else {
			want = append(slices.Clone(short), want...)
		}
		if !slices.Equal(e.GetIds(), want) || int(e.GetPadding()) != p.length-len(short) ||
			len(e.GetStarts()) != p.length || len(e.GetEnds()) != p.length {
			t.Errorf("%s: %v, want %v", name, e, want)
		}
	}
}

func TestService_EncodeRefuses(t *testing.T) {
	s, _ := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t)})
	far := uint32(1 << 20)
	for field, r := range map[string]*tokenizerv1.EncodeBatchRequest{
		"texts[1]":              {Texts: []string{"a", "\xff"}},
		"truncation.max_tokens": {Truncation: &tokenizerv1.Truncation{}},
		"truncation.side":       {Truncation: &tokenizerv1.Truncation{MaxTokens: 1, Side: 9}},
		"padding.side":          {Padding: &tokenizerv1.Padding{Side: 9}},
		"padding.id":            {Padding: &tokenizerv1.Padding{Id: &far}},
		"padding.length":        {Padding: &tokenizerv1.Padding{Length: 1 << 30}},
		"padding.multiple":      {Padding: &tokenizerv1.Padding{Multiple: 1 << 30}},
		"texts[0]": {Texts: slices.Repeat([]string{"a"}, 60000),
			Padding: &tokenizerv1.Padding{Length: 1000}},
		"texts": {Texts: make([]string, 1<<17)},
	} {
		_, err := s.EncodeBatch(t.Context(), r)
		var f *fault.Error
		if fault.CodeOf(err) != fault.Invalid || !asFault(err, &f) || f.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestService_DecodeStreamKeepsMarkers(t *testing.T) {
	v := bpe(t)
	_, c := serve(t, tokenizer.Model{Name: "m", Vocab: v, ChatTemplate: "<|im_end|>{# no marker #}"},
		tokenizer.Model{Name: "x", Digest: "d", Vocab: marked(t), ChatTemplate: "<tool_call>"})
	text := func(model string, keep bool) string {
		stream, err := c.DecodeStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, f := range []*tokenizerv1.DecodeStreamRequest{
			{Frame: &tokenizerv1.DecodeStreamRequest_Open{Open: &tokenizerv1.DecodeOpen{Model: model, SkipSpecial: true,
				KeepMarkers: keep}}},
			{Frame: &tokenizerv1.DecodeStreamRequest_Push{Push: &tokenizerv1.DecodePush{Ids: []uint32{1, 0}}}},
		} {
			if err := stream.Send(f); err != nil {
				t.Fatal(err)
			}
		}
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got.WriteString(r.GetText())
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		return got.String()
	}
	for _, w := range []struct {
		model string
		keep  bool
		want  string
	}{{"m", true, ""}, {"x", true, "<tool_call>"}, {"x", false, ""}} {
		if got := text(w.model, w.keep); got != w.want {
			t.Errorf("%+v: %q", w, got)
		}
	}
}
