package vocab_test

import (
	"errors"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

func TestNewIDs_DecodesToNothingAndRefusesText(t *testing.T) {
	v, err := vocab.NewIDs(10, 2)
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
	if ends := v.EOG(); len(ends) != 1 || ends[0] != 2 {
		t.Errorf("end ids are %v", ends)
	}
}
