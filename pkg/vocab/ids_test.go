package vocab_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

func TestNewIDs_DecodesToNothingAndRefusesText(t *testing.T) {
	v, err := vocab.NewIDs(10, []int32{1}, []int32{5, 2})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := v.Decode([]int32{1, 9}, vocab.DecodeOptions{}); err != nil || text != "" {
		t.Errorf("ids decode to %q, %v", text, err)
	}
	var refused *vocab.TextError
	if _, err := v.Encode("hello", vocab.Options{}); !errors.As(err, &refused) {
		t.Errorf("text is encoded: %v", err)
	}
	if ends := v.EOG(); !slices.Equal(ends, []int32{2, 5}) {
		t.Errorf("stop ids are %v, want 2 and 5", ends)
	}
	bos, _ := v.BOS()
	eos, _ := v.EOS()
	if bos != 1 || eos != 5 {
		t.Errorf("the text begins with %d and ends with %d, want 1 and 5", bos, eos)
	}
	if _, err := vocab.NewIDs(10, nil, []int32{10}); err == nil {
		t.Error("an end id outside the vocabulary is accepted")
	}
}
