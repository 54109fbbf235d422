package nats

// These tests are internal because the functions that turn keys into subjects are not exported.

import (
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

func TestSubject_NamesAreOneTokenAndTellApart(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"a", "a.b", "a_b", "a_2eb", "*", ">", " ", "tied-head", "ä", "\x00"} {
		got := token(name)
		if strings.ContainsAny(got, ".*> \x00") || got == "" {
			t.Errorf("%q becomes %q", name, got)
		}
		if other, taken := seen[got]; taken {
			t.Errorf("%q and %q both become %q", name, other, got)
		}
		seen[got] = name
	}
}

// FuzzParse checks that parse inverts subject, and that it returns an error for any other string.
func FuzzParse(f *testing.F) {
	f.Add("run one.*", "0-2", uint64(3), uint32(0), uint32(4), uint32(1), uint32(0), "lamina.grad.r.p.1.0-1")
	f.Add("", "", uint64(1<<63), uint32(1<<31), uint32(0), uint32(0), uint32(7), "lamina.grad.r.p.1.0-1.x")
	f.Add("r", "p", uint64(0), uint32(0), uint32(0), uint32(0), uint32(0), "lamina.grad.r.p.-1.0-1.0-")
	f.Fuzz(func(t *testing.T, run, part string, step uint64, lo, hi, chunk, attempt uint32, other string) {
		k := gradbus.Key{Run: run, Part: part, Step: step, SlotLo: lo, SlotHi: hi, Chunk: chunk, Attempt: attempt}
		if got, err := parse(subject(k), run, part); err != nil || got != k {
			t.Errorf("%v became %v, %v", k, got, err)
		}
		got, err := parse(other, run, part)
		if err != nil && fault.CodeOf(err) != fault.DataLoss {
			t.Errorf("%q: %v", other, err)
		}
		if err == nil {
			if back, err := parse(subject(got), run, part); err != nil || back != got {
				t.Errorf("%q: %v became %v, %v", other, got, back, err)
			}
		}
	})
}
