package sampler_test

import (
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

func TestService_PromptRowsAreScoredAndPickNothing(t *testing.T) {
	b := open(t)
	b.add(&samplerv1.AddSession{Session: id(1), Epoch: 1, Prompt: []uint32{1, 2},
		Rules: &samplerv1.Rules{TopLogprobs: 2}})
	r := &samplerv1.Row{Session: id(1), Epoch: 1, LogSumExp: 4, Ids: []uint32{5, 3, 7}, Target: proto.Uint32(7)}
	r.Logits, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{3}, []float32{3, 2, -1})
	b.rows(r)
	s := b.hear().GetScore()
	if s.GetPosition() != 1 || s.GetId() != 7 || s.GetLogprob() != -5 || len(s.GetTop()) != 2 ||
		s.GetTop()[0].GetId() != 5 || s.GetTop()[1].GetLogprob() != -2 {
		t.Errorf("the score is %v", s)
	}
	last := logits(1, 1)
	b.rows(row(1, 1, last, 40)) // a token is picked from the prompt's last row
	best := 0
	for i, v := range last {
		if v > last[best] {
			best = i
		}
	}
	if token := b.hear().GetToken(); token.GetPosition() != 2 || int(token.GetId()) != best ||
		math.IsNaN(float64(token.GetLogprob())) {
		t.Errorf("the token is %v, want %d", token, best)
	}
}
