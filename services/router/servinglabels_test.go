package router

import (
	"fmt"
	"strings"
	"testing"
)

// The number of models with series of their own is bounded.
func TestServing_ManyModelsShareASeries(t *testing.T) {
	s := newServing("")
	for i := range 1000 {
		s.of(fmt.Sprint("model ", i)).generated.Inc()
	}
	s.of(strings.Repeat("x", maxModelLabelLen+1)).generated.Inc()
	if n := len(s.known()); n != maxModelLabels+1 {
		t.Errorf("%d models have series, want %d and %s", n, maxModelLabels, otherModel)
	}
	if s.of("model 999") != s.of(otherModel) || s.of("model 3") == s.of(otherModel) {
		t.Error("the first models do not keep their series, or further ones have their own")
	}
}
