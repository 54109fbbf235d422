package trainer

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// aCorpus returns a corpus of 1000 characters whose last tenth is for validation.
func aCorpus(t *testing.T, change func(*Manifest)) *dataset {
	t.Helper()
	path := filepath.Join(t.TempDir(), "text.txt")
	if err := os.WriteFile(path, []byte(strings.Repeat("abcdéfghij", 90)+strings.Repeat("0123456789", 10)),
		0o600); err != nil {
		t.Fatal(err)
	}
	m := &Manifest{Data: Data{Text: path, ValidationFraction: 0.1}, Vocabulary: Vocabulary{Type: "char"},
		SequenceLen: 7, Seed: 3}
	if change != nil {
		change(m)
	}
	c, err := readData(context.Background(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func slotOf(t *testing.T, d *dataset, step uint64, slot, sequences int) *micro {
	t.Helper()
	m, err := d.slot(step, slot, sequences)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCorpus_CutsByCharacters(t *testing.T) {
	d := aCorpus(t, nil)
	c := d.source.(*texts)
	if len(c.train) != 900 || len(c.validation) != 100 {
		t.Errorf("%d and %d characters, want 900 and 100", len(c.train), len(c.validation))
	}
	for at, ids := range map[string][]int32{"ghij": c.train[896:], "0123": c.validation[:4]} {
		text, err := d.vocab.Decode(ids, vocab.DecodeOptions{})
		if err != nil || text != at {
			t.Errorf("cut at %q, want %q (%v)", text, at, err)
		}
	}
}

func TestCorpus_DataOfAStepIsAFunctionOfTheStep(t *testing.T) {
	a, b := aCorpus(t, nil), aCorpus(t, nil)
	slotOf(t, b, 9, 3, 2) // reading other data first must change nothing
	seen := map[string]bool{}
	for step := uint64(1); step <= 5; step++ {
		for slot := range 4 {
			x, y := slotOf(t, a, step, slot, 2), slotOf(t, b, step, slot, 2)
			if !slices.Equal(x.GetIds(), y.GetIds()) || !slices.Equal(x.GetTargets(), y.GetTargets()) {
				t.Errorf("step %d slot %d differs", step, slot)
			}
			seen[string(rune(x.GetIds()[0]))+"/"+string(rune(x.GetIds()[7]))] = true
			for i := range 6 { // targets are the ids shifted by one
				if uint32(x.GetTargets()[i]) != x.GetIds()[i+1] {
					t.Fatalf("step %d slot %d: target %d is %d, the next id is %d", step, slot, i, x.GetTargets()[i],
						x.GetIds()[i+1])
				}
			}
		}
	}
	if len(seen) < 8 {
		t.Errorf("20 slots begin in %d ways", len(seen))
	}
	other := aCorpus(t, func(m *Manifest) { m.Seed = 4 })
	if slices.Equal(slotOf(t, other, 1, 0, 2).GetIds(), slotOf(t, a, 1, 0, 2).GetIds()) &&
		slices.Equal(slotOf(t, other, 2, 0, 2).GetIds(), slotOf(t, a, 2, 0, 2).GetIds()) {
		t.Error("the seed does not change the data")
	}
}

func TestCorpus_EvaluationCoversTheTextOnce(t *testing.T) {
	d := aCorpus(t, nil)
	c := d.source.(*texts)
	var ids []uint32
	var last *micro
	for i := range d.evaluations(3) {
		m, err := d.evaluation(1, i, 3)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && last.GetSequences() != 3 {
			t.Errorf("a slot of %d sequences is not the last", last.GetSequences())
		}
		ids, last = append(ids, m.GetIds()...), m
	}
	if want := 99 / 7 * 7; len(ids) != want {
		t.Fatalf("%d ids, want %d", len(ids), want)
	}
	for i, id := range ids {
		if int32(id) != c.validation[i] {
			t.Fatalf("id %d is %d, the text has %d", i, id, c.validation[i])
		}
	}
}

func TestMetrics_ResumeDropsRepeatedSteps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	for _, upTo := range []uint64{0, 3, 2} {
		m, err := openSteps(path, filepath.Join(t.TempDir(), "work"), upTo)
		if err != nil {
			t.Fatal(err)
		}
		for step := upTo + 1; step <= 5; step++ {
			if err := m.write(line{Step: step, Loss: 1}); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "\n"); n != 5 {
			t.Errorf("resumed after step %d: %d lines, want 5\n%s", upTo, n, text)
		}
	}
}
