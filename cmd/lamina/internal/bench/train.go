package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/optim"
)

type benchTrainCmd struct {
	verb.KernelFlags
	Shape   string `help:"Model to train: nanogpt (its CPU configuration) or gpt2-124m." enum:"nanogpt,gpt2-124m" default:"nanogpt"`
	Batch   int    `help:"Number of sequences in a step. Default: 12 for nanogpt, 4 for gpt2-124m."`
	Tokens  int    `help:"Number of tokens in a sequence." default:"64"`
	Slots   int    `help:"Number of slots, which is the number of micro-batches into which a step is split." default:"1"`
	Repeat  int    `help:"Number of steps, of which the median is reported. Three more steps come first as a warm-up." default:"20"`
	BF16    bool   `name:"bf16" help:"Round both operands of matrix products to bfloat16 and store activations as bfloat16, as the precision bf16 of a manifest does."`
	Profile bool   `help:"Also report how long each operation takes."`
	Results string `help:"Folder to which the result is also written, such as bench/results." type:"path"`
	Format  string `help:"Output: text or json." enum:"text,json" default:"text"`
}

// trainResult is what --format json prints.
type trainResult struct {
	Shape       string  `json:"shape"`
	Kernels     string  `json:"kernels"`
	KernelClass string  `json:"kernel_class"`
	Threads     int     `json:"threads"`
	Batch       int     `json:"batch"`
	Tokens      int     `json:"tokens"`
	Slots       int     `json:"slots"`
	BF16        bool    `json:"bf16"`
	Parameters  int     `json:"parameters"`
	StepMillis  float64 `json:"step_ms"` // forward, backward, norm, clipping and update
	BestMillis  float64 `json:"step_ms_best"`
	// of matrices and attention; a multiply-add counts as two, recomputation does not count
	StepGflop  float64     `json:"step_gflop"`
	Gflops     float64     `json:"gflops"`      // per second
	Share      float64     `json:"share"`       // of the peak of float32, or of bfloat16 with --bf16
	PeakGflops cpu.Peaks   `json:"peak_gflops"` // that the same number of threads reach in registers
	TokensTPS  float64     `json:"tokens_tps"`
	Loss       float64     `json:"loss"` // of the last step
	Profile    []operation `json:"profile,omitempty"`
	Machine    machine     `json:"machine"`
}

// shape returns the model to train and its default batch size.
func (c *benchTrainCmd) shape() (model.Spec, int) {
	if c.Shape == "gpt2-124m" {
		return model.NewGPT2(model.Shape{Layers: 12, Width: 768, Heads: 12, Vocab: 50257,
			Context: max(1024, c.Tokens)}), 4
	}
	return model.NewGPT2(model.Shape{Layers: 4, Width: 128, Heads: 4, Vocab: 65, Context: max(64, c.Tokens)}), 12
}

// Run measures training steps.
func (c *benchTrainCmd) Run(e *verb.Env) error {
	config, batch := c.shape()
	c.Batch = cmp.Or(c.Batch, batch)
	switch {
	case c.Batch < 1:
		return fault.Field("batch", "%d sequences: want one or more", c.Batch)
	case c.Tokens < 1:
		return fault.Field("tokens", "%d tokens: want one or more", c.Tokens)
	case c.Slots < 1 || c.Batch%c.Slots != 0:
		return fault.Field("slots", "%d slots do not divide %d sequences", c.Slots, c.Batch)
	case c.Repeat < 1:
		return fault.Field("repeat", "%d steps: want one or more", c.Repeat)
	}
	set, closeSet, err := c.KernelSet()
	if err != nil {
		return err
	}
	defer closeSet()
	fast, measured := set.(*cpu.Set)
	if c.BF16 {
		set = set.BFloat16()
	}
	r := &trainResult{
		Shape: c.Shape, Kernels: set.Name(), KernelClass: set.Class(),
		Threads: cmp.Or(c.Threads, runtime.GOMAXPROCS(0)),
		Batch:   c.Batch, Tokens: c.Tokens, Slots: c.Slots, BF16: c.BF16, Machine: thisMachine(),
	}
	if measured {
		r.PeakGflops = fast.Peaks(peakTime)
	}
	t, err := c.trainer(config, set)
	if err != nil {
		return err
	}
	if err := c.time(e, t, r); err != nil {
		return err
	}
	r.Parameters = t.parameters()
	r.StepGflop = config.StepFlops(model.Sequences(c.Batch, c.Tokens)) / 1e9
	r.Gflops, r.TokensTPS = r.StepGflop/r.StepMillis*1e3, float64(c.Batch*c.Tokens)/r.StepMillis*1e3
	if peak := r.peak(); peak > 0 {
		r.Share = r.Gflops / peak
	}
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

// peak returns the peak of the matrix products of the step.
func (r *trainResult) peak() float64 {
	if r.BF16 {
		return max(r.PeakGflops.BFloat16, r.PeakGflops.Float32)
	}
	return r.PeakGflops.Float32
}

// benchTrainer trains a model in this process, without the services.
type benchTrainer struct {
	set     kernel.Set[float32]
	profile *profile
	stage   *model.Stage[float32]
	grads   *model.Params[float32]
	part    *model.Params[float32] // gradients of a slot after the first
	m, v    []float32
	adamw   optim.AdamW
	step    int
	micro   []model.Micro[float32]
}

func (c *benchTrainCmd) trainer(config model.Spec, set kernel.Set[float32]) (*benchTrainer, error) {
	t := &benchTrainer{set: set, adamw: optim.AdamW{Beta1: 0.9, Beta2: 0.99, Epsilon: 1e-8, Decay: 0.1}}
	if c.Profile {
		t.profile = newProfile(set)
		t.set = &trainProfile{t.profile}
	}
	var err error
	if t.stage, err = model.Init(config, model.Range{Hi: len(config.Layers)}, t.set, 1337); err != nil {
		return nil, err
	}
	t.grads = t.stage.NewGrads()
	if c.Slots > 1 {
		t.part = t.stage.NewGrads()
	}
	t.m, t.v = make([]float32, t.stage.Params().Len()), make([]float32, t.stage.Params().Len())
	n := c.Batch / c.Slots
	for slot := range c.Slots {
		ids := benchIDs(slot*n*c.Tokens, n*c.Tokens+1, config.Vocab)
		t.micro = append(t.micro, model.Micro[float32]{
			B: n, T: c.Tokens, IDs: ids[:n*c.Tokens], Targets: ids[1:], Scale: 1 / float64(c.Batch*c.Tokens),
		})
	}
	return t, nil
}

// parameters returns the number of parameters. Tied ones count once.
func (t *benchTrainer) parameters() int {
	n := 0
	for _, p := range t.stage.Params().Tensors {
		if !p.Tied() {
			n += len(p.Data)
		}
	}
	return n
}

// time runs the steps and takes the median of their times.
func (c *benchTrainCmd) time(e *verb.Env, t *benchTrainer, r *trainResult) error {
	const first = 3
	var times []float64
	for i := range c.Repeat + first {
		if err := e.Ctx.Err(); err != nil {
			return err
		}
		if i == first && t.profile != nil {
			clear(t.profile.times)
		}
		began := time.Now()
		loss, err := t.run()
		if err != nil {
			return err
		}
		if i >= first {
			times = append(times, 1e3*time.Since(began).Seconds())
		}
		r.Loss = loss
	}
	r.StepMillis, r.BestMillis = median(times), slices.Min(times)
	if t.profile != nil {
		r.Profile = t.profile.operations()
	}
	return nil
}

// run performs one step and returns the mean loss before it.
func (t *benchTrainer) run() (float64, error) {
	var loss float64
	for slot, in := range t.micro {
		t.phase("forward")
		tr, err := t.stage.TrainForward(in)
		if err != nil {
			return 0, err
		}
		for _, l := range tr.Loss {
			loss += l * in.Scale
		}
		t.phase("backward")
		grads := t.grads
		if slot > 0 {
			grads = t.part
		}
		if _, err := t.stage.TrainBackward(tr, nil, grads); err != nil {
			return 0, err
		}
		if slot > 0 {
			for i, g := range grads.Tensors {
				t.set.Add(t.grads.Tensors[i].Data, g.Data)
			}
		}
	}
	t.phase("update")
	t.update()
	return loss, nil
}

func (t *benchTrainer) phase(name string) { t.profile.begin(name) }

func (t *benchTrainer) count(name string, began time.Time) {
	if t.profile != nil {
		t.profile.add(name, began)
	}
}

// update clips the gradient and applies the optimizer.
func (t *benchTrainer) update() {
	t.step++
	params := t.stage.Params()
	began := time.Now()
	var squares float64
	t.grads.FoldTied(t.set.Add)
	for _, g := range t.grads.Tensors {
		if !g.Tied() {
			squares += t.set.SumSquares(g.Data)
		}
	}
	t.count("norm of the gradient", began)
	began = time.Now()
	scale, at := optim.ClipScale(math.Sqrt(squares), 1), 0
	for i, p := range params.Tensors {
		if n := len(p.Data); !p.Tied() {
			t.adamw.Step(t.set, p.Data, t.m[at:at+n], t.v[at:at+n], t.grads.Tensors[i].Data, scale, 1e-3, t.step,
				len(p.Shape) > 1)
			at += n
		}
	}
	t.count("adamw", began)
}

// print writes the result as text.
func (r *trainResult) print(e *verb.Env) error {
	w := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "MACHINE\t%s, %s, %s/%s\n", r.Machine.CPU, plural.Of(r.Machine.Cores, "core"), r.Machine.OS,
		r.Machine.Arch)
	fmt.Fprintf(w, "SHAPE\t%s\t%d parameters, %d x %d tokens in %s\n", r.Shape, r.Parameters, r.Batch, r.Tokens,
		plural.Of(r.Slots, "slot"))
	fmt.Fprintf(w, "KERNELS\t%s, %s\n", r.KernelClass, plural.Of(r.Threads, "thread"))
	fmt.Fprintf(w, "STEP\t%.2f ms\t%.0f tokens/s, loss %.4f; the fastest took %.2f ms\n", r.StepMillis, r.TokensTPS,
		r.Loss, r.BestMillis)
	fmt.Fprintf(w, "WORK\t%.1f GFLOP/s\t%.2f GFLOP a step\n", r.Gflops, r.StepGflop)
	if p := r.PeakGflops; p.Float32 > 0 {
		fmt.Fprintf(
			w,
			"PEAK\t%.0f GFLOP/s\tfloat32, %.0f bfloat16; the step reaches %.0f %% of what its products could\n",
			p.Float32,
			p.BFloat16,
			100*r.Share,
		)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printProfile(e.Stdout, r.Profile)
}

// write writes the result to a file in a folder. The name of the file has the date and the settings.
func (r *trainResult) write(folder string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	kind := "f32"
	if r.BF16 {
		kind = "bf16"
	}
	name := fmt.Sprintf("%s-train-%s-%s-t%d-b%d-s%d.json", time.Now().Format(time.DateOnly), r.Shape, kind, r.Threads,
		r.Batch, r.Slots)
	return os.WriteFile(filepath.Join(folder, name), append(text, '\n'), 0o644)
}

// trainProfile is a profile that also measures the operations of training.
type trainProfile struct{ *profile }

func (p *trainProfile) MatMulGrad(dx, x kernel.Buffer[float32], t int, products ...kernel.ProductGrad[float32]) {
	rows := 0
	for _, q := range products {
		rows += q.W.Rows
	}
	defer p.add(productName(products[0].W.Cols, rows, products[0].W), time.Now())
	p.Set.MatMulGrad(dx, x, t, products...)
}

func (p *trainProfile) EmbedGrad(dw, dy kernel.Buffer[float32], ids []int32, c int) {
	defer p.add("embed", time.Now())
	p.Set.EmbedGrad(dw, dy, ids, c)
}

func (p *trainProfile) RMSNormGrad(dx, dg, dy, x, g kernel.Buffer[float32], eps float64, t, c int) {
	defer p.add("norm grad", time.Now())
	p.Set.RMSNormGrad(dx, dg, dy, x, g, eps, t, c)
}

func (p *trainProfile) LayerNormGrad(dx, dg, db, dy, x, g kernel.Buffer[float32], eps float64, t, c int) {
	defer p.add("norm grad", time.Now())
	p.Set.LayerNormGrad(dx, dg, db, dy, x, g, eps, t, c)
}

func (p *trainProfile) RotateGrad(dx kernel.Buffer[float32], r *kernel.Rotary, pos []int32, h, d int) {
	defer p.add("rotate", time.Now())
	p.Set.RotateGrad(dx, r, pos, h, d)
}

func (p *trainProfile) AttendCausal(y, lse, q, k, v kernel.Buffer[float32], b, t int, a kernel.Heads) {
	defer p.add("attend", time.Now())
	p.Set.AttendCausal(y, lse, q, k, v, b, t, a)
}

func (p *trainProfile) AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v kernel.Buffer[float32], b, t int,
	a kernel.Heads) {
	defer p.add("attend", time.Now())
	p.Set.AttendCausalGrad(dq, dk, dv, dy, y, lse, q, k, v, b, t, a)
}

func (p *trainProfile) AttendDocuments(y, lse, q, k, v kernel.Buffer[float32], lengths []int, a kernel.Heads) {
	defer p.add("attend", time.Now())
	p.Set.AttendDocuments(y, lse, q, k, v, lengths, a)
}

func (p *trainProfile) AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v kernel.Buffer[float32], lengths []int,
	a kernel.Heads) {
	defer p.add("attend", time.Now())
	p.Set.AttendDocumentsGrad(dq, dk, dv, dy, y, lse, q, k, v, lengths, a)
}

func (p *trainProfile) GLUGrad(dgate, dup, y, dy, gate, up kernel.Buffer[float32], act kernel.Act) {
	defer p.add("activate grad", time.Now())
	p.Set.GLUGrad(dgate, dup, y, dy, gate, up, act)
}

func (p *trainProfile) ActivateGrad(dx, y, dy, x kernel.Buffer[float32], act kernel.Act) {
	defer p.add("activate grad", time.Now())
	p.Set.ActivateGrad(dx, y, dy, x, act)
}

func (p *trainProfile) CrossEntropy(loss []float64, dlogits, logits kernel.Buffer[float32], targets []int32,
	scale float64, t, v int) {
	defer p.add("cross entropy", time.Now())
	p.Set.CrossEntropy(loss, dlogits, logits, targets, scale, t, v)
}
