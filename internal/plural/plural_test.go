package plural_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/internal/plural"
)

func TestOf(t *testing.T) {
	for n, want := range map[int64]string{-1: "-1 files", 0: "0 files", 1: "1 file", 2: "2 files", 11: "11 files"} {
		if got := plural.Of(n, "file"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
