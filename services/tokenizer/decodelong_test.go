package tokenizer_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// TestService_DecodeOfLongTokensIsBounded sends ids that take little room and whose texts take a lot.
func TestService_DecodeOfLongTokensIsBounded(t *testing.T) {
	long := "<" + strings.Repeat("x", 998) + ">"
	v, err := vocab.TrainBPE(t.Context(), slices.Values([]string{"the user"}), 280,
		vocab.TrainOptions{Special: []string{long}, BOS: long, EOS: long})
	if err != nil {
		t.Fatal(err)
	}
	id, ok := v.ID(long)
	if !ok {
		t.Fatal("there is no long token")
	}
	s, c := serve(t, tokenizer.Model{Name: "m", Vocab: v})
	ids := slices.Repeat([]uint32{uint32(id)}, 5000)
	if r, err := s.Decode(t.Context(), &tokenizerv1.DecodeRequest{Ids: ids[:3000]}); err != nil ||
		len(r.GetText()) != 3000*len(long) {
		t.Errorf("3 MB: %d bytes, %v", len(r.GetText()), err)
	}
	r, err := s.Decode(t.Context(), &tokenizerv1.DecodeRequest{Ids: ids})
	if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "ids: 4194 of them") {
		t.Errorf("5 MB: %d bytes, %v", len(r.GetText()), err)
	}
	stream, err := c.DecodeStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*tokenizerv1.DecodeStreamRequest{
		{Frame: &tokenizerv1.DecodeStreamRequest_Open{Open: &tokenizerv1.DecodeOpen{}}},
		{Frame: &tokenizerv1.DecodeStreamRequest_Push{Push: &tokenizerv1.DecodePush{Ids: ids}}},
	} {
		if err := stream.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unknown && status.Code(err) != codes.InvalidArgument ||
		!strings.Contains(err.Error(), "push.ids: ") {
		t.Errorf("5 MB in one push: %v", err)
	}
}
