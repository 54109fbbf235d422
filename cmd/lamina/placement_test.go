package main

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestParseMemory_ReadsUnits(t *testing.T) {
	for text, want := range map[string]int64{
		"": 0, "1": 1, "2000000000": 2e9, "2GB": 2e9, "1.5GiB": 3 << 29, "64 MiB": 64 << 20, "3kB": 3000, "7B": 7,
		"8e9": 8e9, "1TiB": 1 << 40,
	} {
		if got, err := parseMemory("memory-limit", text); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "-1", "0", "GB", "1XB", "NaN", "inf", "1e300", "2 GB GB", "2000TiB"} {
		if got, err := parseMemory("memory-limit", text); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: got %d, %v", text, got, err)
		}
	}
}

func FuzzParseMemory(f *testing.F) {
	for _, text := range []string{"", "1.5GiB", "64 MiB", "-1", "1e300", "NaNB"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseMemory("memory-limit", text)
		if err == nil && (got < 0 || got > maxMemory) || err != nil && fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	})
}
