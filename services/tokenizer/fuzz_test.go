package tokenizer_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// No request makes the service panic or return an internal error.
func FuzzService(f *testing.F) {
	v, err := vocab.TrainBPE(f.Context(), slices.Values([]string{"the quick brown fox"}), 270,
		vocab.TrainOptions{Special: []string{"<|im_start|>", "<|im_end|>"}, EOS: "<|im_end|>"})
	if err != nil {
		f.Fatal(err)
	}
	s, err := tokenizer.New(tokenizer.Config{Models: []tokenizer.Model{{Name: "m", Vocab: v, ChatTemplate: chatML}}})
	if err != nil {
		f.Fatal(err)
	}
	id := uint32(3)
	for i, m := range []proto.Message{
		&tokenizerv1.EncodeRequest{Text: "the fox", Spans: true, Truncation: &tokenizerv1.Truncation{MaxTokens: 2}},
		&tokenizerv1.EncodeBatchRequest{Texts: []string{"the", ""}, Spans: true,
			Padding: &tokenizerv1.Padding{Id: &id, Multiple: 8, Side: 1}},
		&tokenizerv1.DecodeRequest{Ids: []uint32{1, 5, 9}},
		&tokenizerv1.ApplyChatTemplateRequest{Messages: []*tokenizerv1.Message{{Role: "user", Content: "x"},
			{Json: `{"role":"assistant","content":null,"tool_calls":[]}`}},
			ToolsJson: "[{}]", DocumentsJson: "[{}]", VariablesJson: "{}", NoGenerationPrompt: true,
			ContinueFinalMessage: true},
		&tokenizerv1.DescribeRequest{Model: "m"},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), data)
	}
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		ctx, err := t.Context(), error(nil)
		switch method % 5 {
		case 0:
			r := &tokenizerv1.EncodeRequest{}
			if proto.Unmarshal(data, r) == nil {
				_, err = s.Encode(ctx, r)
			}
		case 1:
			r := &tokenizerv1.EncodeBatchRequest{}
			if proto.Unmarshal(data, r) == nil {
				_, err = s.EncodeBatch(ctx, r)
			}
		case 2:
			r := &tokenizerv1.DecodeRequest{}
			if proto.Unmarshal(data, r) == nil {
				_, err = s.Decode(ctx, r)
			}
		case 3:
			r := &tokenizerv1.ApplyChatTemplateRequest{}
			if proto.Unmarshal(data, r) == nil {
				_, err = s.ApplyChatTemplate(ctx, r)
			}
		case 4:
			r := &tokenizerv1.DescribeRequest{}
			if proto.Unmarshal(data, r) == nil {
				_, err = s.Describe(ctx, r)
			}
		}
		if code := fault.CodeOf(err); err != nil && (code == fault.Internal || code == fault.Unspecified) {
			t.Errorf("method %d: %v", method%5, err)
		}
	})
}
