package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// benchRows is the number of prompt rows that are computed in one step.
const benchRows = 512

type benchCmd struct {
	verb.KernelFlags
	Model        string `short:"m" help:"GGUF file or Hugging Face folder." xor:"model" type:"model"`
	Shape        string `help:"Random weights in the shape of a model: smollm2-135m, smollm2-360m or gpt2-124m." xor:"model"`
	Quant        string `help:"Element type of the matrices of --shape, such as Q4_0 or BF16." default:"Q8_0"`
	PromptTokens int    `help:"Number of tokens in a prompt." default:"512"`
	GenTokens    int    `help:"Number of tokens generated after a prompt." default:"64"`
	Batch        int    `help:"Number of sequences in a batch." default:"1"`
	Stages       int    `help:"Number of stages into which the model is split." default:"1"`
	Repeat       int    `help:"Number of runs, of which the medians are reported. One more run comes first as a warm-up." default:"3"`
	Profile      bool   `help:"Also report how long each operation takes."`
	Results      string `help:"Folder to which the result is also written, such as bench/results." type:"path"`
	Format       string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// benchResult is what --format json prints. Rates are per second.
type benchResult struct {
	Model        string  `json:"model"`
	Quant        string  `json:"quant,omitempty"` // element type of a shape's matrices
	Kernels      string  `json:"kernels"`
	KernelClass  string  `json:"kernel_class"`
	Threads      int     `json:"threads"`
	Batch        int     `json:"batch"`
	Stages       int     `json:"stages"`
	PromptTokens int     `json:"prompt_tokens"`
	GenTokens    int     `json:"gen_tokens"`
	WeightBytes  int64   `json:"weight_bytes"` // read by a decode step
	PrefillTPS   float64 `json:"prefill_tps"`  // prompt tokens, over all sequences
	DecodeTPS    float64 `json:"decode_tps"`   // generated tokens, over all sequences
	DecodeGBps   float64 `json:"decode_gbps"`  // 10⁹ bytes of weights read by decode
	ReadGBps     float64 `json:"read_gbps"`    // 10⁹ bytes that the same number of threads can read from memory
	DecodeShare  float64 `json:"decode_share"` // decode_gbps divided by read_gbps

	PrefillGflops float64 `json:"prefill_gflops"` // of the matrices of the layers; a multiply-add counts as two
	// of the peak for the element type of the matrices; 0 if there is no probe
	PrefillShare float64     `json:"prefill_share"`
	PeakGflops   cpu.Peaks   `json:"peak_gflops"` // that the same number of threads reach in registers
	Profile      []operation `json:"profile,omitempty"`

	PeakRSSBytes *int64  `json:"peak_rss_bytes"`
	Machine      machine `json:"machine"`
}

// Run measures a model, and then the memory bandwidth of the machine.
func (c *benchCmd) Run(e *verb.Env) error {
	if err := c.check(); err != nil {
		return err
	}
	if c.Threads == 0 {
		c.Threads = runtime.GOMAXPROCS(0)
	}
	if c.Kernels == "ref" { // it uses GOMAXPROCS goroutines
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(c.Threads))
	}
	r := &benchResult{
		Model: c.Model, Threads: c.Threads, Batch: c.Batch, Stages: c.Stages,
		PromptTokens: c.PromptTokens, GenTokens: c.GenTokens, Machine: thisMachine(),
	}
	if err := c.measure(e.Ctx, r); err != nil {
		return err
	}
	r.PeakRSSBytes = peakRSS() // before the probe, which needs a large buffer
	var err error
	if r.ReadGBps, err = readGBps(e.Ctx, c.Threads, probeSize()); err != nil {
		return err
	}
	r.DecodeShare = r.DecodeGBps / r.ReadGBps
	if c.Results != "" {
		if err := r.write(c.Results); err != nil {
			return err
		}
	}
	if c.Format == "json" {
		return verb.PrintJSON(e, r)
	}
	return r.print(e)
}

func (c *benchCmd) check() error {
	switch {
	case c.Model == "" && c.Shape == "":
		return fault.Field("model", "give -m MODEL or --shape NAME")
	case c.Threads < 0:
		return fault.Field("threads", "%d threads: want one or more, or 0 for one for each processor", c.Threads)
	case c.PromptTokens < 1:
		return fault.Field("prompt-tokens", "%d ids: want one or more", c.PromptTokens)
	case c.GenTokens < 1:
		return fault.Field("gen-tokens", "%d ids: want one or more", c.GenTokens)
	case c.Repeat < 1:
		return fault.Field("repeat", "%d runs: want one or more", c.Repeat)
	case c.Batch < 1:
		return fault.Field("batch", "%d sequences: want one or more", c.Batch)
	}
	return nil
}

// open opens the model or builds the shape.
func (c *benchCmd) open(r *benchResult) (*model.Files, error) {
	if c.Shape == "" {
		return model.Open(c.Model)
	}
	d, err := parseQuant(c.Quant)
	if err != nil {
		return nil, err
	}
	s, err := shapeNamed(c.Shape)
	if err != nil {
		return nil, err
	}
	r.Model, r.Quant = c.Shape, d.String()
	return s.open(c.Shape, d)
}

// measure runs the model and fills in the result.
func (c *benchCmd) measure(ctx context.Context, r *benchResult) error {
	set, closeSet, err := c.KernelSet()
	if err != nil {
		return err
	}
	defer closeSet()
	if fast, ok := set.(*cpu.Set); ok {
		r.PeakGflops = fast.Peaks(peakTime)
	}
	var profile *profile
	if c.Profile {
		profile = newProfile(set)
		set = profile
	}
	r.Kernels, r.KernelClass = set.Name(), set.Class()
	f, err := c.open(r)
	if err != nil {
		return err
	}
	err = func() error {
		if n := c.PromptTokens + c.GenTokens; n > f.Spec.Context {
			return fault.Field("prompt-tokens", "%d ids with the generated ones: the context length of %s is %d", n,
				f.Path, f.Spec.Context)
		}
		chain, err := verb.LoadChain(f, c.Stages, c.Batch, c.PromptTokens+c.GenTokens, set, model.LoadOptions{})
		if err != nil {
			return err
		}
		r.WeightBytes = stepBytes(f)
		if err := c.time(ctx, chain, r, profile); err != nil {
			return err
		}
		var peak float64
		r.PrefillGflops, peak = r.PrefillTPS*layerFlops(f)/1e9, typePeak(f, r.PeakGflops)
		if peak > 0 {
			r.PrefillShare = r.PrefillGflops / peak
		}
		return nil
	}()
	return errors.Join(err, f.Close())
}

// peakTime is how long each peak of the machine is measured.
const peakTime = 100 * time.Millisecond

// time runs the prompts and the generation several times and takes the medians. The first run is
// not counted, because it brings the weights into memory.
func (c *benchCmd) time(ctx context.Context, chain *verb.Chain, r *benchResult, p *profile) error {
	var prefill, decode []float64
	for run := range c.Repeat + 1 {
		prompt, gen, err := c.once(ctx, chain, p)
		if err != nil {
			return err
		}
		if run > 0 {
			prefill, decode = append(prefill, prompt), append(decode, gen)
		}
	}
	if p != nil {
		r.Profile = p.operations()
	}
	r.PrefillTPS = float64(c.Batch*c.PromptTokens) / median(prefill)
	r.DecodeTPS = float64(c.Batch*c.GenTokens) / median(decode)
	r.DecodeGBps = float64(r.WeightBytes) * r.DecodeTPS / float64(c.Batch) / 1e9
	return nil
}

func median(x []float64) float64 {
	slices.Sort(x)
	return (x[len(x)/2] + x[(len(x)-1)/2]) / 2
}

// once runs the prompts and the generation and returns the seconds of each.
func (c *benchCmd) once(ctx context.Context, chain *verb.Chain, p *profile) (prompt, gen float64, err error) {
	entries := make([]verb.Entry, c.Batch)
	for i := range entries {
		entries[i].Seq = chain.NewSequence()
		defer entries[i].Seq.Free()
	}
	vocab := chain.Stages[0].Spec.Vocab
	p.begin("prefill")
	began := time.Now()
	rows := max(1, benchRows/c.Batch)
	for at := 0; at < c.PromptTokens; at += rows {
		end := min(at+rows, c.PromptTokens)
		for i := range entries {
			entries[i].IDs, entries[i].Logits = benchIDs(at+i, end-at, vocab), 0
			if end == c.PromptTokens {
				entries[i].Logits = 1
			}
		}
		if err := step(ctx, chain, entries); err != nil {
			return 0, 0, err
		}
	}
	prompt = time.Since(began).Seconds()
	p.begin("decode")
	began = time.Now()
	for n := range c.GenTokens {
		for i := range entries {
			entries[i].IDs, entries[i].Logits = benchIDs(c.PromptTokens+n+i, 1, vocab), 1
		}
		if err := step(ctx, chain, entries); err != nil {
			return 0, 0, err
		}
	}
	return prompt, time.Since(began).Seconds(), nil
}

func step(ctx context.Context, chain *verb.Chain, entries []verb.Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := chain.Forward(entries...)
	return err
}

// benchIDs returns n ids that are spread over the vocabulary.
func benchIDs(from, n, vocab int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32((from + i + 1) * 7919 % vocab)
	}
	return ids
}

// stepBytes returns how many bytes of weights a decode step reads from memory. That is all tensors
// except those of which it only looks up single rows.
func stepBytes(f *model.Files) int64 {
	var sum int64
	conv1D := f.Spec.Architecture == "gpt2" && f.GGUF() == nil // converted to float32 when it is loaded
	for _, name := range f.Source.Names() {
		info, ok := f.Source.Info(name)
		head := name == "lm_head.weight" || name == "output.weight"
		embedding := name == "token_embd.weight" || strings.HasSuffix(name, "embed_tokens.weight") ||
			strings.HasSuffix(name, "wte.weight")
		positions := name == "position_embd.weight" || strings.HasSuffix(name, "wpe.weight")
		switch {
		case !ok, len(info.Shape) > 2, positions, embedding && !f.Spec.Head.Tied, head && f.Spec.Head.Tied:
		case len(info.Shape) < 2, info.DType == tensor.F64, conv1D && !embedding && !head:
			sum += 4 * int64(info.Elements())
		default:
			sum += info.Bytes
		}
	}
	return sum
}

// print writes the result as text.
func (r *benchResult) print(e *verb.Env) error {
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "MACHINE\t%s, %s, %s/%s\n", r.Machine.CPU, plural.Of(r.Machine.Cores, "core"), r.Machine.OS,
		r.Machine.Arch)
	fmt.Fprintf(w, "MODEL\t%s %s\n", r.Model, r.Quant)
	fmt.Fprintf(w, "KERNELS\t%s, %s\n", r.KernelClass, plural.Of(r.Threads, "thread"))
	fmt.Fprintf(w, "PREFILL\t%.1f tokens/s\t%d of %d in %s\n", r.PrefillTPS, r.Batch, r.PromptTokens,
		plural.Of(r.Stages, "stage"))
	fmt.Fprintf(w, "DECODE\t%.1f tokens/s\t%d of %d, %.2f GB/s of weights\n", r.DecodeTPS, r.Batch, r.GenTokens,
		r.DecodeGBps)
	fmt.Fprintf(w, "READ\t%.2f GB/s\tby %s; decode reaches %.0f %%\n", r.ReadGBps, plural.Of(r.Threads, "thread"),
		100*r.DecodeShare)
	if p := r.PeakGflops; p.Float32 > 0 {
		fmt.Fprintf(
			w,
			"PEAK\t%.0f GFLOP/s\tfloat32; %.0f int8, %.0f bfloat16; prefill does %.0f, %.0f %% of what its type can\n",
			p.Float32,
			p.Int8,
			p.BFloat16,
			r.PrefillGflops,
			100*r.PrefillShare,
		)
	}
	if r.PeakRSSBytes != nil {
		fmt.Fprintf(w, "PEAK RSS\t%.1f MiB\n", float64(*r.PeakRSSBytes)/(1<<20))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printProfile(e.Stdout, r.Profile)
}
