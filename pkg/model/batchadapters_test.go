package model_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"weak"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// randomAdapter returns an adapter with random values, of a rank, for the modules that a pattern matches.
func randomAdapter(t testing.TB, spec *model.Spec, rank int, pattern string, dora bool, seed uint64) *adapter.Adapter {
	t.Helper()
	c := adapter.Config{Rank: rank, Alpha: 2 * float64(rank), DoRA: dora, Targets: adapter.Pattern{Regexp: pattern}}
	a, err := spec.NewAdapterFor(c, seed)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 7))
	for i := range a.Modules {
		m := &a.Modules[i]
		for _, values := range [][]float32{m.A, m.B} {
			for j := range values {
				values[j] = float32(0.2 * r.NormFloat64() / math.Sqrt(float64(rank)))
			}
		}
		if dora {
			m.Magnitude = make([]float32, m.Out)
			for j := range m.Magnitude {
				m.Magnitude[j] = float32(0.5 + r.Float64())
			}
		}
	}
	return a
}

// serve loads an adapter on every stage.
func (c *chain[F]) serve(t testing.TB, a *adapter.Adapter) []*model.Adapter[F] {
	t.Helper()
	var out []*model.Adapter[F]
	for _, s := range c.stages {
		ad, err := s.ServeAdapter(a)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, ad)
	}
	return out
}

// turn is an entry of a batch over all stages.
type turn[F tensor.Float] struct {
	part[F]
	adapter []*model.Adapter[F] // by stage; nil for none
}

// adapted is run for parts with adapters. It returns the logits of the last row of each.
func (c *chain[F]) adapted(t testing.TB, turns ...turn[F]) [][]F {
	t.Helper()
	var hidden []F
	for i, s := range c.stages {
		b := &model.Batch[F]{Hidden: slices.Clone(hidden)}
		for _, p := range turns {
			e := model.Entry[F]{Seq: p.seq[i], Pos: p.pos, Rows: len(p.ids), Logits: 1}
			if p.adapter != nil {
				e.Adapter = p.adapter[i]
			}
			b.Entries = append(b.Entries, e)
			if i == 0 {
				b.IDs = append(b.IDs, p.ids...)
			}
		}
		var err error
		if hidden, err = s.Forward(b); err != nil {
			t.Fatal(err)
		}
	}
	vocab, out := c.stages[0].Spec.Vocab, [][]F(nil)
	for i := range turns {
		out = append(out, slices.Clone(hidden[i*vocab:(i+1)*vocab]))
	}
	return out
}

const (
	everyMatrix = `.*(proj|lm_head|embed_tokens|wte|c_\w+).*`
	queries     = `.*(q_proj|v_proj|c_attn|qkv_proj)`
)

// TestForward_MixedAdaptersGiveTheBitsOfEachAlone runs prompts and single tokens of five adapters, with DoRA and
// without, and of none in shared batches. Every row has the bits that it has alone, and rows without an adapter
// have those of a stage that has never seen one.
func TestForward_MixedAdaptersGiveTheBitsOfEachAlone(t *testing.T) {
	for _, name := range brief([]string{"llama", "phi3", "gpt2", "gemma3", "qwen3-moe"}, "llama", "phi3") {
		for form, files := range forms(t, name) {
			for kernels, set := range sets(t) {
				for stages := 1; stages <= 2; stages++ {
					t.Run(fmt.Sprintf("%s/%s/%s/%d", name, form, kernels, stages), func(t *testing.T) {
						mixed(t, files, set, stages)
					})
				}
			}
		}
	}
}

func mixed(t *testing.T, files *model.Files, set kernel.Set[float32], stages int) {
	var all []*adapter.Adapter
	for i, rank := range []int{1, 3, 8, 17} {
		pattern := everyMatrix
		if i%2 == 1 {
			pattern = queries
		}
		all = append(all, randomAdapter(t, &files.Spec, rank, pattern, false, uint64(i)))
	}
	mix(t, files, set, stages, append(all, randomAdapter(t, &files.Spec, 4, queries, true, 9))...)
}

// mix compares rows of adapters and of none in shared batches with each alone.
func mix(t *testing.T, files *model.Files, set kernel.Set[float32], stages int, all ...*adapter.Adapter) {
	c, plain := newChain(t, files, set, stages), newChain(t, files, set, stages)
	adapters := [][]*model.Adapter[float32]{nil}
	for _, a := range all {
		adapters = append(adapters, c.serve(t, a))
	}
	r := rand.New(rand.NewPCG(3, 4))
	prompt := func(n int) []int32 {
		ids := make([]int32, n)
		for i := range ids {
			ids[i] = int32(r.IntN(files.Spec.Vocab))
		}
		return ids
	}
	const sequences, steps = 12, 4
	var logs, next [][]int32
	for range sequences {
		logs, next = append(logs, prompt(1+r.IntN(9))), append(next, prompt(steps))
	}
	of := func(i int) []*model.Adapter[float32] { return adapters[i%len(adapters)] }
	// Each alone, and those without an adapter on a chain without any.
	want := make([][][]float32, sequences)
	for i := range sequences {
		on := c
		if of(i) == nil {
			on = plain
		}
		seq, pos := on.sequence(), 0
		for _, ids := range append([][]int32{logs[i]}, chunks(next[i])...) {
			want[i] = append(want[i], on.adapted(t, turn[float32]{part[float32]{seq, ids, pos}, of(i)})[0])
			pos += len(ids)
		}
	}
	for i := 1; i < len(adapters); i++ {
		if slices.Equal(want[i][0], want[0][0]) {
			t.Fatalf("adapter %d has no effect", i)
		}
	}
	// Together, in an order that puts an adapter's entries next to each other, and in one that does not.
	for _, sorted := range []bool{false, true} {
		order := make([]int, sequences)
		for i := range order {
			order[i] = i
		}
		if sorted {
			slices.SortStableFunc(order, func(a, b int) int { return a%len(adapters) - b%len(adapters) })
		}
		seqs, pos := map[int]part[float32]{}, make([]int, sequences)
		for i := range sequences {
			seqs[i] = part[float32]{seq: c.sequence()}
		}
		for step := range 1 + steps {
			var turns []turn[float32]
			for _, i := range order {
				p := part[float32]{seqs[i].seq, logs[i], pos[i]}
				if step > 0 {
					p.ids = next[i][step-1 : step]
				}
				pos[i] += len(p.ids)
				turns = append(turns, turn[float32]{p, of(i)})
			}
			for at, got := range c.adapted(t, turns...) {
				if i := order[at]; !slices.Equal(got, want[i][step]) {
					t.Fatalf("step %d (sorted %v): sequence %d differs from the one alone", step, sorted, i)
				}
			}
		}
	}
}

// chunks returns ids one by one.
func chunks(ids []int32) (out [][]int32) {
	for i := range ids {
		out = append(out, ids[i:i+1])
	}
	return out
}

// TestForward_AdapterEqualsMergedWeights compares rows of a mixed batch with a model whose weights contain the
// adapter.
func TestForward_AdapterEqualsMergedWeights(t *testing.T) {
	for _, name := range brief([]string{"llama", "phi3", "gpt2", "qwen2"}, "llama") {
		for form, files := range forms(t, name) {
			set := kernel.Set[float32](ref.New[float32]())
			ids := readExpectation(t, name).Cases[0].IDs[:12]
			for _, dora := range []bool{false, true} {
				pattern := everyMatrix
				if dora {
					pattern = queries
				}
				a := randomAdapter(t, &files.Spec, 4, pattern, dora, 5)
				c := newChain(t, files, set, 2)
				got := c.adapted(t, turn[float32]{part[float32]{c.sequence(), ids, 0}, nil},
					turn[float32]{part[float32]{c.sequence(), ids, 0}, c.serve(t, a)})[1]
				near(t, got, merged(t, files, a, ids), 2e-3)
				if t.Failed() {
					t.Fatalf("%s/%s, DoRA %v", name, form, dora)
				}
			}
		}
	}
}

// merged computes the logits of the last id with the adapter merged into dense weights.
func merged(t *testing.T, files *model.Files, a *adapter.Adapter, ids []int32) (out []float64) {
	t.Helper()
	set := kernel.Set[float32](ref.New[float32]())
	params, spec, err := model.Merged(files, a)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := model.ExportFiles(dir, spec, params, model.ExportOptions{DType: tensor.F32}); err != nil {
		t.Fatal(err)
	}
	c := newChain(t, open(t, dir), set, 1)
	for _, v := range c.run(t, part[float32]{c.sequence(), ids, 0}) {
		out = append(out, float64(v))
	}
	return out
}

// TestForward_AdaptersOfPEFT serves the adapters of shared/models/tiny-lora beside rows of the base.
func TestForward_AdaptersOfPEFT(t *testing.T) {
	for _, name := range []string{"llama", "qwen2"} {
		want, a, files := readLora(t, name)
		for kernels, set := range sets(t) {
			for stages := 1; stages <= 2; stages++ {
				c := newChain(t, files, set, stages)
				base := turn[float32]{part[float32]{c.sequence(), want.IDs, 0}, nil}
				got := c.adapted(t, base, turn[float32]{part[float32]{c.sequence(), want.IDs, 0}, c.serve(t, a)})
				near(t, got[1], want.LastLogits, tolerance[kernels])
				if slices.Equal(got[0], got[1]) {
					t.Errorf("%s: the adapter has no effect", name)
				}
			}
		}
	}
}

// TestServeAdapter_RefusesWhatItCannotServe names the tensor or the module, and why.
func TestServeAdapter_RefusesWhatItCannotServe(t *testing.T) {
	files, other := open(t, shared(t, "models/tiny/llama")), open(t, shared(t, "models/tiny/gemma3"))
	set := kernel.Set[float32](ref.New[float32]())
	c, second := newChain(t, files, set, 1), newChain(t, files, set, 1)
	stage := c.stages[0]
	for _, tc := range []struct {
		want   string
		code   fault.Code
		change func(*adapter.Adapter)
	}{
		{"q_proj.lora_A.weight: want a rank of at most 512", fault.DataLoss, func(a *adapter.Adapter) {
			a.Modules[0].Rank = 1000
		}},
		{"q_proj.lora_magnitude_vector: use_dora is true", fault.DataLoss, func(a *adapter.Adapter) { a.DoRA = true }},
		{"q_proj: want ", fault.DataLoss, func(a *adapter.Adapter) { a.Modules[0].In++ }},
		{"no such module", fault.DataLoss, func(a *adapter.Adapter) { a.Modules[0].Name = "model.layers.99.q_proj" }},
		{"q_proj: want ", fault.DataLoss, func(a *adapter.Adapter) {
			*a = *randomAdapter(t, &other.Spec, 2, `.*0.self_attn.q_proj`, false, 1) // of another base
		}},
	} {
		a := randomAdapter(t, &files.Spec, 2, `.*0.self_attn.q_proj`, false, 1)
		tc.change(a)
		_, err := stage.ServeAdapter(a)
		if fault.CodeOf(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
	a := randomAdapter(t, &files.Spec, 2, queries, false, 1)
	ad := c.serve(t, a)
	_, err := second.stages[0].Forward(&model.Batch[float32]{IDs: []int32{1},
		Entries: []model.Entry[float32]{{Seq: second.sequence()[0], Rows: 1, Adapter: ad[0]}}})
	if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "adapter of entry 0 is of another stage") {
		t.Errorf("an adapter of another stage: %v", err)
	}
	bytes := int64(0)
	for _, m := range a.Outline().Modules {
		bytes += m.Bytes()
	}
	if got := ad[0].Bytes(); got != bytes {
		t.Errorf("the adapter takes %d bytes, want %d", got, bytes)
	}
	halves := newChain(t, files, set, 2)
	for _, m := range a.Outline().Modules {
		first := strings.Contains(m.Name, "layers.0.") || strings.Contains(m.Name, "layers.1.")
		if halves.stages[0].Needs(m.Name) != first || halves.stages[1].Needs(m.Name) == first {
			t.Errorf("the wrong stage needs %s", m.Name)
		}
	}
}

// TestForward_KeepsNoAdapterAfterTheBatch looks for an adapter that nobody else has after a batch with it and others.
func TestForward_KeepsNoAdapterAfterTheBatch(t *testing.T) {
	for _, files := range forms(t, "llama") {
		c := newChain(t, files, kernel.Set[float32](ref.New[float32]()), 1)
		var held []weak.Pointer[model.Adapter[float32]]
		func() {
			var turns []turn[float32]
			for i := range 3 {
				ad := c.serve(t, randomAdapter(t, &files.Spec, 2, queries, i == 2, uint64(i)))
				held = append(held, weak.Make(ad[0]))
				seq := c.sequence()
				if err := seq[0].Reserve(1); err != nil {
					t.Fatal(err)
				}
				turns = append(turns, turn[float32]{part[float32]{seq, []int32{1}, 0}, ad})
			}
			c.adapted(t, turns...)
		}()
		for try := 0; ; try++ { // a collection may come too early
			runtime.GC()
			left := 0
			for _, p := range held {
				if p.Value() != nil {
					left++
				}
			}
			if left == 0 {
				break
			}
			if try == 10 {
				t.Fatalf("%d of %d adapters are kept", left, len(held))
			}
		}
		runtime.KeepAlive(c)
	}
}
