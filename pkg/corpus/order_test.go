package corpus_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestPermutation_HasEachNumberOnce(t *testing.T) {
	for _, n := range []int64{1, 2, 3, 4, 5, 15, 16, 17, 1000, 4096, 65537} {
		orders := map[string]bool{}
		for key := range uint64(4) {
			p := corpus.NewPermutation(n, key)
			seen, moved := make([]bool, n), 0
			var order []int64
			for i := range n {
				at := p.At(i)
				if at < 0 || at >= n || seen[at] {
					t.Fatalf("%d numbers, key %d: number %d is %d, again or outside", n, key, i, at)
				}
				seen[at] = true
				order = append(order, at)
				if at != i {
					moved++
				}
			}
			if n > 100 && moved < int(n)*9/10 {
				t.Errorf("%d numbers, key %d: only %d moved", n, key, moved)
			}
			orders[fmt.Sprint(order)] = true
		}
		if n > 15 && len(orders) != 4 {
			t.Errorf("%d numbers: 4 keys give %d orders", n, len(orders))
		}
	}
}

// TestPermutation_LooksRandom counts where neighbours go.
func TestPermutation_LooksRandom(t *testing.T) {
	const n, keys = 64, 4000
	var at [n]float64
	for key := range uint64(keys) {
		p := corpus.NewPermutation(n, key)
		at[(p.At(1)-p.At(0)+n)%n]++
	}
	var chi float64
	for _, c := range at[1:] {
		d := c - keys/float64(n-1)
		chi += d * d / (keys / float64(n-1))
	}
	if chi > 62+5*math.Sqrt(2*62) {
		t.Errorf("chi-squared of the distances of neighbours is %.0f for 62 degrees of freedom", chi)
	}
}

func counts(m *corpus.Mixture, from, to int64) map[corpus.Place]int {
	out := map[corpus.Place]int{}
	for n := from; n < to; n++ {
		p := m.At(n)
		p.Epoch = 0
		out[p]++
	}
	return out
}

func TestMixture_EachEpochHasEachSampleOnce(t *testing.T) {
	m, err := corpus.NewMixture(7, []corpus.Part{{Samples: 100}, {Samples: 37, Epochs: 2}, {Samples: 10, Epochs: 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	const pass = 100 + 74 + 5
	for k := range int64(4) {
		seen := counts(m, k*pass, (k+1)*pass)
		var want int
		for p, n := range seen {
			if want = []int{1, 2, 1}[p.Part]; n != want {
				t.Errorf("pass %d reads %+v %d times, want %d", k, p, n, want)
			}
		}
		if len(seen) != 142 {
			t.Errorf("pass %d has %d samples, want 142", k, len(seen))
		}
	}
	if seen := counts(m, 0, 2*pass); len(seen) != 147 { // two halves of the third part
		t.Errorf("two passes have %d samples, want 147", len(seen))
	}
	if err := m.Check(pass); err != nil {
		t.Error(err)
	}
	if err := m.Check(
		pass + 1,
	); fault.CodeOf(err) != fault.Invalid ||
		!strings.Contains(err.Error(), "tokens[1].epochs") {
		t.Errorf("more than a pass: %v", err)
	}
}

func TestMixture_WeightsDivideEveryBlock(t *testing.T) {
	m, err := corpus.NewMixture(7, []corpus.Part{{Samples: 1000, Weight: 3}, {Samples: 512, Weight: 1, Epochs: 4}})
	if err != nil {
		t.Fatal(err)
	}
	var parts [2]int
	epochs := map[corpus.Place]int{}
	for n := range int64(2 * 4096) {
		p := m.At(n)
		parts[p.Part]++
		epochs[p]++
	}
	if parts != [2]int{6144, 2048} {
		t.Errorf("parts have %v samples", parts)
	}
	for p, n := range epochs {
		if n != 1 {
			t.Errorf("%+v is read %d times in its epoch", p, n)
		}
	}
	if err := m.Check(8192); err != nil {
		t.Error(err)
	}
	if err := m.Check(8193); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("more than four epochs of the second part: %v", err)
	}
}

func TestMixture_WrongPartsAreNamed(t *testing.T) {
	for want, parts := range map[string][]corpus.Part{
		"data.tokens:":            {},
		"data.tokens[0].path":     {{}},
		"data.tokens[1].weight":   {{Samples: 1, Weight: 1}, {Samples: 1}},
		"data.tokens[0].weight":   {{Samples: 1, Weight: math.NaN()}},
		"data.tokens[1].epochs":   {{Samples: 1}, {Samples: 1, Epochs: -1}},
		"data.tokens[0].epochs":   {{Samples: 1, Epochs: 0.1}},
		"less than one sample in": {{Samples: 1, Weight: 1e6}, {Samples: 1, Weight: 1}},
	} {
		if _, err := corpus.NewMixture(
			1,
			parts,
		); fault.CodeOf(err) != fault.Invalid ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", parts, err, want)
		}
	}
}

// documents builds token data of documents of random lengths and returns their tokens.
func documents(t *testing.T, n, most int) (*corpus.Data, [][]int32) {
	t.Helper()
	var lines strings.Builder
	var all [][]int32
	r := rand.New(rand.NewPCG(5, 6))
	for range n {
		text := make([]byte, 1+r.IntN(most))
		var ids []int32
		for i := range text {
			text[i] = byte('a' + r.IntN(26))
			ids = append(ids, int32(text[i]))
		}
		fmt.Fprintf(&lines, "%s\n", text)
		all = append(all, append(ids, end))
	}
	path := write(t, filepath.Join(t.TempDir(), "a.txt"), []byte(lines.String()))
	return build(t, config(t.TempDir(), corpus.Options{Lines: true}, path)), all
}

// TestPacking_EveryTokenIsATargetOnce checks every row of every sample against the documents: ids, targets and
// the borders of documents.
func TestPacking_EveryTokenIsATargetOnce(t *testing.T) {
	d, all := documents(t, 400, 60)
	for _, name := range []string{corpus.PackConcat, corpus.PackBestFit} {
		for _, length := range []int{1, 2, 7, 32, 61, 100, 5000} {
			const from, to = 13, 391
			p, err := corpus.NewPacking(d, from, to, length, name)
			if err != nil {
				t.Fatal(err)
			}
			var want, got []string // each document's rows in order: "id>target"
			for _, ids := range all[from:to] {
				last := int32(begin)
				for _, id := range ids {
					want = append(want, fmt.Sprint(last, ">", id))
					last = id
				}
			}
			rows, masked := int64(0), int64(0)
			for i := range p.Samples() {
				s, err := p.Sample(i)
				if err != nil {
					t.Fatal(err)
				}
				if len(s.IDs) != length || len(s.Targets) != length {
					t.Fatalf("%s of %d: %d ids, %d targets", name, length, len(s.IDs), len(s.Targets))
				}
				at := 0
				for _, n := range s.Documents {
					for k := at; k < at+n; k++ {
						rows++
						if s.Targets[k] < 0 {
							masked++
							continue
						}
						if k > at && (s.IDs[k] != s.Targets[k-1] || s.IDs[k] == begin) ||
							k+1 < at+n && s.Targets[k] == end {
							t.Fatalf("%s of %d: sample %d, row %d: %v > %v", name, length, i, k, s.IDs, s.Targets)
						}
						got = append(got, fmt.Sprint(s.IDs[k], ">", s.Targets[k]))
					}
					at += n
				}
				if at != length {
					t.Fatalf("%s of %d: documents %v", name, length, s.Documents)
				}
			}
			if name == corpus.PackBestFit { // its samples are in another order
				slices.Sort(got)
				slices.Sort(want)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s of %d: %d rows, want %d", name, length, len(got), len(want))
			}
			if share := float64(masked) / float64(rows); share != p.Waste() || p.Tokens() != int64(len(want)) {
				t.Errorf("%s of %d: waste %v and %d tokens, want %v and %d", name, length, p.Waste(), p.Tokens(), share,
					len(want))
			}
			if length == 100 && p.Waste() > 0.02 {
				t.Errorf("%s of %d: waste is %.3f", name, length, p.Waste())
			}
		}
	}
}

func TestPacking_BestFitDividesNoDocumentThatFits(t *testing.T) {
	d, _ := documents(t, 200, 60)
	p, err := corpus.NewPacking(d, 0, 200, 61, corpus.PackBestFit)
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.Samples() {
		s, err := p.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, n := range s.Documents {
			if s.Targets[at] >= 0 && (s.IDs[at] != begin || s.Targets[at+n-1] != end) {
				t.Fatalf("sample %d divides a document: %v", i, s)
			}
			at += n
		}
	}
}

func TestData_CutsBetweenDocuments(t *testing.T) {
	d, all := documents(t, 100, 60)
	for _, fraction := range []float64{0, 0.001, 0.1, 0.5, 0.9, 0.999} {
		at := d.Cut(fraction)
		var kept, total int
		for i, ids := range all {
			total += len(ids)
			if int64(i) < at {
				kept += len(ids)
			}
		}
		if fraction == 0 && at != 100 || fraction > 0 && (at < 1 || at > 99) ||
			math.Abs(float64(total-kept)/float64(total)-fraction) > 0.03 {
			t.Errorf("fraction %v cuts at document %d: %d of %d tokens", fraction, at, total-kept, total)
		}
	}
}

// TestShard_EveryFlippedByteIsFound changes each byte of a shard.
func TestShard_EveryFlippedByteIsFound(t *testing.T) {
	d, _ := documents(t, 20, 20)
	whole, err := os.ReadFile(filepath.Join(d.Dir, d.Index.Shards[0].File))
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		flipped := slices.Clone(whole)
		flipped[i] ^= 0x10
		if 16 <= i && i < 20 || 40 <= i && i < 80 {
			continue // vocabulary and size of the text: compared with the index
		}
		s, err := corpus.ParseShard("x", flipped)
		if err == nil {
			err = s.Verify()
		}
		if fault.CodeOf(err) != fault.DataLoss && fault.CodeOf(err) != fault.Unimplemented {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	for n := range whole {
		if _, err := corpus.ParseShard("x", whole[:n]); fault.CodeOf(err) != fault.DataLoss {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestOpen_ComparesShardsWithTheIndex(t *testing.T) {
	d, _ := documents(t, 20, 20)
	path := filepath.Join(d.Dir, d.Index.Shards[0].File)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{40, 50, 90} {
		flipped := slices.Clone(whole)
		flipped[at] ^= 1
		dir := t.TempDir()
		for name, text := range contents(t, d.Dir) {
			write(t, filepath.Join(dir, name), []byte(text))
		}
		write(t, filepath.Join(dir, filepath.Base(path)), flipped)
		if _, err := corpus.Open(
			dir,
		); fault.CodeOf(err) != fault.DataLoss ||
			!strings.Contains(err.Error(), "shard-00000") {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

func FuzzParseShard(f *testing.F) {
	text := []byte("LMTOKENS\x01\x00\x00\x00\x10\x00\x00\x00\x02\x01\x00\x00\x00\x01\x00\x00")
	f.Add(append(append(text, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0), make([]byte, 88+8+8)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := corpus.ParseShard("x", data)
		if err != nil {
			if c := fault.CodeOf(err); c != fault.DataLoss && c != fault.Unimplemented {
				t.Fatal(err)
			}
			return
		}
		_ = s.Verify()
		for i := range s.Documents() {
			_, _ = s.Read(nil, s.End(i-1), s.End(i))
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"format": 1, "vocabulary": {"family": "bpe", "size": 3, "sha256": "` + strings.Repeat("00", 32) +
		`", "end": 2}, "bits": 16, "tokens": 5, "documents": 1, "shards": [{"file": "a", "tokens": 5, "documents": 1}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := corpus.ParseIndex("x", text)
		if err == nil && (x.Tokens < 1 || x.Documents > x.Tokens) {
			t.Fatalf("%+v", x)
		}
	})
}
