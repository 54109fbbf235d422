package router

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
)

// byteTokens is a tokenizer that encodes a text as its bytes, after a begin-of-text id unless the
// request asks for none.
type byteTokens struct {
	tokenizerv1.TokenizerServiceClient
}

func (byteTokens) EncodeBatch(
	_ context.Context, r *tokenizerv1.EncodeBatchRequest, _ ...grpc.CallOption,
) (*tokenizerv1.EncodeBatchResponse, error) {
	out := &tokenizerv1.EncodeBatchResponse{}
	for _, text := range r.GetTexts() {
		e := &tokenizerv1.EncodeResponse{}
		if !r.GetNoBos() {
			e.Ids = append(e.Ids, 999)
		}
		for _, b := range []byte(text) {
			e.Ids = append(e.Ids, uint32(b))
		}
		out.Encodings = append(out.Encodings, e)
	}
	return out, nil
}

func TestRequest_BadWordTexts_AreEncoded(t *testing.T) {
	given := &samplerv1.Advanced{MinTokens: 2, BadWords: []*samplerv1.Ids{{Ids: []uint32{5, 6}}}}
	q := &request{sampling: &routerv1.Sampling{BadWords: []string{"ab", " ab", " "}, Advanced: given}}
	if err := q.bounds(); err != nil {
		t.Fatal(err)
	}
	if err := q.encodeBadWords(t.Context(), byteTokens{}); err != nil {
		t.Fatal(err)
	}
	got := q.samplerRules(&modelInfo{}).GetAdvanced()
	want := &samplerv1.Advanced{MinTokens: 2, BadWords: []*samplerv1.Ids{
		{Ids: []uint32{5, 6}}, {Ids: []uint32{'a', 'b'}}, {Ids: []uint32{' ', 'a', 'b'}}, {Ids: []uint32{' '}},
	}}
	if !proto.Equal(got, want) {
		t.Errorf("the sampler is told %v, want %v", got, want)
	}
	if len(given.GetBadWords()) != 1 {
		t.Errorf("the request was changed to %v", given)
	}
}

func TestRequest_BadWordTextsOutOfBounds_AreNamed(t *testing.T) {
	for field, words := range map[string][]string{
		"sampling.bad_words":    make([]string, 257),
		"sampling.bad_words[1]": {"a", ""},
		"sampling.bad_words[0]": {strings.Repeat("a", 65)}, // more ids than a bad word may have
		"sampling.bad_words[2]": {"a", "b", strings.Repeat("a", 257)},
	} {
		q := &request{sampling: &routerv1.Sampling{BadWords: words}}
		err := q.bounds()
		if err == nil {
			err = q.encodeBadWords(t.Context(), byteTokens{})
		}
		var f *fault.Error
		if !errors.As(err, &f) || f.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}
