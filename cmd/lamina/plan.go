package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/internal/plural"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

type planCmd struct {
	Model string `short:"m" required:"" help:"GGUF file, or folder with a GGUF or Hugging Face model. Of a GGUF file only the header is needed: it may end anywhere behind it." type:"model"`
	Hosts string `help:"File with the hosts as JSON: {\"hosts\": [{\"id\", \"memory_bytes\", \"layer_ms\", \"hop_ms\", optional \"bandwidth_mbps\", \"zone\", \"class\", \"row_ms\", \"layer_bytes\"}]}; - for standard input."`
	consulLive
	Goal        string   `help:"What the plan is best in: latency, throughput or fewest-hosts."                                 default:"latency"`
	Format      string   `help:"Output: text or json."                                                                          default:"text"    enum:"text,json"`
	Current     string   `help:"File with a plan that this command has printed as JSON. It is repaired, so that little moves."`
	Replicas    int      `help:"Number of pipelines; 0 means 1, but as many as the hosts allow if the goal is throughput."      default:"0"`
	Pin         []string `help:"Host that must hold layers. Can be repeated."                                                                     sep:"none"`
	Avoid       []string `help:"Host that must not hold layers. Can be repeated."                                                                 sep:"none"`
	Zone        string   `help:"Use only hosts of this zone."`
	AtMost      int      `help:"Largest number of stages of a pipeline; 0 for any number."                                      default:"0"`
	MixClasses  bool     `help:"Allow hosts of several kernel classes in one pipeline. Its results then depend on the split."`
	Headroom    float64  `help:"Share of each host's memory that stays free."                                                   default:"0.2"`
	KVType      string   `help:"Element type of the KV cache: f32, f16, q8 or auto."                                            default:"auto"    enum:"auto,f32,f16,q8" name:"kv-type"`
	KVPositions int      `help:"Number of positions in the KV cache, if there is memory for them."                              default:"16384"                          name:"kv-positions"`
	KVLeast     int      `help:"Least number of positions in the KV cache."                                                     default:"2048"                           name:"kv-least"`
	Prompt      int      `help:"Number of prompt tokens for which the time to the first token is predicted."                    default:"128"                            name:"prompt-tokens"`
	Streams     int      `help:"Number of streams for which the total rate is predicted."                                       default:"8"`
	RouterMS    *float64 `help:"Time from the last stage over the sampler to the router, in milliseconds. Default: 0, and with --consul what the placer has learned." name:"router-ms"`
}

// planReport is what --format json prints.
type planReport struct {
	Model         string         `json:"model"`
	Goal          string         `json:"goal"`
	Pipelines     []planPipeline `json:"pipelines"`
	LeftOut       []planLeftOut  `json:"left_out"`
	Moves         []planMove     `json:"moves"`
	Uncovered     string         `json:"uncovered,omitempty"` // why there is no pipeline
	Streams       int            `json:"streams"`
	StreamsTPS    float64        `json:"streams_tokens_per_second"` // of all pipelines, with that many streams
	SaturatedTPS  float64        `json:"saturated_tokens_per_second"`
	PromptTokens  int            `json:"prompt_tokens"`
	BytesToLoad   int64          `json:"bytes_to_load"`
	LayersToLoad  int            `json:"layers_to_load"`
	WeightBytes   int64          `json:"weight_bytes"` // of the model
	KVBytesPerPos int64          `json:"kv_bytes_per_position"`
}

type planPipeline struct {
	Stages          []planStage `json:"stages"`
	TokensPerSecond float64     `json:"tokens_per_second"` // of one stream
	TTFTMS          float64     `json:"ttft_ms"`
	TokenMS         float64     `json:"token_ms"`
	Class           string      `json:"class"`
	KVPositions     int         `json:"kv_positions"`
	SlowestStage    int         `json:"slowest_stage"`
}

type planStage struct {
	Host        string  `json:"host"`
	Lo          int     `json:"lo"`
	Hi          int     `json:"hi"`
	MemoryBytes int64   `json:"memory_bytes"`
	MS          float64 `json:"ms"`
	HopMS       float64 `json:"hop_ms"`
}

type planLeftOut struct {
	Host   string `json:"host"`
	Reason string `json:"reason"`
}

type planMove struct {
	Step   int    `json:"step"`
	Action string `json:"action"`
	Host   string `json:"host"`
	Lo     int    `json:"lo"`
	Hi     int    `json:"hi"`
	Bytes  int64  `json:"bytes"`
}

// Run prints the plan. It fails if the model cannot be placed.
func (c *planCmd) Run(e *verb.Env) error {
	goal, err := plan.ParseGoal(c.Goal)
	if err != nil {
		return err
	}
	m, err := c.model()
	if err != nil {
		return err
	}
	r := plan.Request{
		Models: []plan.Model{m}, Goal: goal, Mix: c.MixClasses, Headroom: c.Headroom,
		Prompt: c.Prompt, Streams: c.Streams,
	}
	if err := c.hosts(e, &r); err != nil {
		return err
	}
	m = r.Models[0]
	if c.RouterMS != nil {
		r.RouterMS = *c.RouterMS
	}
	if c.Headroom == 0 {
		r.Headroom = 1e-9 // 0 stands for the default
	}
	current := &plan.Plan{}
	var p *plan.Plan
	if c.Current == "" {
		p, err = plan.Place(r)
	} else if current, err = c.current(e, m); err == nil {
		p, err = plan.Repair(r, current)
	}
	if err != nil {
		return err
	}
	moves, err := plan.Moves(r, current, p)
	if err != nil {
		return err
	}
	out := newPlanReport(m, goal, c, p, moves)
	if c.Format == "json" {
		err = verb.PrintJSON(e, out)
	} else {
		err = out.print(e.Stdout)
	}
	if err == nil && len(p.Uncovered) > 0 {
		err = fault.New(fault.FailedPrecondition, "place %s: %s", m.Name, out.Uncovered)
	}
	return err
}

// hosts makes the hosts of a request those of the file, or those that Consul lists.
func (c *planCmd) hosts(e *verb.Env, r *plan.Request) error {
	switch {
	case c.Hosts != "" && c.Consul != "":
		return fault.Field("consul", "name either a file with the hosts or a Consul agent")
	case c.Consul != "":
		return c.live(e, r)
	case c.Hosts == "":
		return fault.Field("hosts", "name a file with the hosts, or a Consul agent by --consul")
	}
	text, err := c.read(e, c.Hosts)
	if err != nil {
		return err
	}
	if r.Hosts, err = plan.ParseHosts(text); err != nil {
		return fmt.Errorf("read %s: %w", c.Hosts, err)
	}
	return nil
}

func (c *planCmd) read(e *verb.Env, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(e.Stdin, 1<<30))
	}
	return os.ReadFile(path)
}

// model describes the model from its header.
func (c *planCmd) model() (plan.Model, error) {
	f, err := model.OpenHeader(c.Model)
	if err != nil {
		return plan.Model{}, err
	}
	defer f.Close()
	kv, ok := kernel.ParseKVType(c.KVType)
	if !ok {
		return plan.Model{}, fault.Field("kv-type", "unknown type %q", c.KVType)
	}
	sizes := f.Sizes()
	for l, n := range sizes.Layers {
		if n == 0 {
			return plan.Model{}, fault.New(fault.FailedPrecondition, "plan %s: the file has no tensors of layer %d",
				c.Model, l)
		}
	}
	if c.KVLeast < 1 || c.KVPositions < c.KVLeast {
		return plan.Model{}, fault.Field("kv-least", "want 1 to %d positions, got %d", c.KVPositions, c.KVLeast)
	}
	return plan.Model{
		Name: f.Name(), Layers: sizes.Layers, Read: sizes.Read, Embedding: sizes.Embedding, Head: sizes.Head,
		Tied: f.Spec.Head.Tied, KVBytes: f.Spec.KVBytes(kv), HiddenBytes: int64(f.Spec.Width) * 4,
		KVPositions: c.KVLeast, MaxKVPositions: c.KVPositions, Replicas: c.Replicas, Pin: c.Pin, Avoid: c.Avoid,
		Zone: c.Zone, AtMost: c.AtMost,
	}, nil
}

// current reads a plan that was printed before.
func (c *planCmd) current(e *verb.Env, m plan.Model) (*plan.Plan, error) {
	text, err := c.read(e, c.Current)
	if err != nil {
		return nil, err
	}
	var was planReport
	if err := json.Unmarshal(text, &was); err != nil {
		return nil, fault.Field("current", "read %s: %v", c.Current, err)
	}
	out := &plan.Plan{}
	for k, l := range was.Pipelines {
		at := 0
		p := plan.Pipeline{Model: m.Name, Digest: m.Name, Class: l.Class, KVPositions: l.KVPositions}
		for i, s := range l.Stages {
			if s.Lo != at || s.Hi <= s.Lo || s.Hi > len(m.Layers) {
				return nil, fault.Field("current",
					"read %s: pipelines[%d].stages[%d]: host %q: want layers from %d to at most %d, got %d to %d",
					c.Current, k, i, s.Host, at, len(m.Layers), s.Lo, s.Hi)
			}
			at = s.Hi
			p.Stages = append(p.Stages, plan.Stage{Host: s.Host, Lo: s.Lo, Hi: s.Hi, Memory: s.MemoryBytes})
		}
		if at != len(m.Layers) {
			return nil, fault.Field("current", "read %s: pipelines[%d]: it ends at layer %d, and the model has %d",
				c.Current, k, at, len(m.Layers))
		}
		out.Pipelines = append(out.Pipelines, p)
	}
	return out, nil
}

func newPlanReport(m plan.Model, goal plan.Goal, c *planCmd, p *plan.Plan, moves []plan.Move) *planReport {
	out := &planReport{
		Model: m.Name, Goal: goal.String(), Pipelines: []planPipeline{}, LeftOut: []planLeftOut{}, Moves: []planMove{},
		Streams: c.Streams, PromptTokens: c.Prompt, WeightBytes: m.Embedding,
		KVBytesPerPos: m.KVBytes * int64(len(m.Layers)),
	}
	for _, n := range m.Layers {
		out.WeightBytes += n
	}
	if !m.Tied {
		out.WeightBytes += m.Head
	}
	for _, l := range p.Pipelines {
		line := planPipeline{
			TokensPerSecond: l.Predicted.TokensPerS, TTFTMS: l.Predicted.TTFTMS, TokenMS: l.Predicted.TokenMS,
			Class: l.Class, KVPositions: l.KVPositions, SlowestStage: l.Predicted.SlowestStage,
		}
		for _, s := range l.Stages {
			line.Stages = append(line.Stages, planStage{s.Host, s.Lo, s.Hi, s.Memory, s.MS, s.HopMS})
		}
		out.Pipelines = append(out.Pipelines, line)
		out.StreamsTPS += l.Predicted.StreamsTPS
		out.SaturatedTPS += l.Predicted.SaturatedTPS
	}
	for _, l := range p.LeftOut {
		out.LeftOut = append(out.LeftOut, planLeftOut{l.ID, l.Reason})
	}
	for _, v := range moves {
		out.Moves = append(out.Moves, planMove{v.Step, v.Action.String(), v.Host, v.Lo, v.Hi, v.Bytes})
	}
	out.LayersToLoad, out.BytesToLoad = plan.Loads(moves)
	for _, u := range p.Uncovered {
		out.Uncovered = u.Reason
	}
	return out
}

// print writes the plan as tables.
func (r *planReport) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s: %s of weights, %s of KV cache for 1,000 positions; goal: %s\n", r.Model,
		mebibytes(r.WeightBytes), mebibytes(1000*r.KVBytesPerPos), r.Goal)
	for k, l := range r.Pipelines {
		fmt.Fprintf(w, "\nPIPELINE %d\tLAYERS\tMEMORY\tHOP MS\tCOMPUTE MS\t\n", k)
		for i, s := range l.Stages {
			note := ""
			if i == l.SlowestStage && len(l.Stages) > 1 {
				note = "slowest"
			}
			fmt.Fprintf(w, "%s\t%d-%d\t%s\t%.3f\t%.3f\t%s\n", s.Host, s.Lo, s.Hi, mebibytes(s.MemoryBytes), s.HopMS,
				s.MS, note)
		}
		fmt.Fprintf(w, "%.2f tokens/s for one stream, %.0f ms to the first token of %d, %d positions of KV cache\n",
			l.TokensPerSecond, l.TTFTMS, r.PromptTokens, l.KVPositions)
	}
	if len(r.Pipelines) > 0 {
		fmt.Fprintf(w, "\n%.2f tokens/s for %s, at most %.2f\n", r.StreamsTPS, plural.Of(r.Streams, "stream"),
			r.SaturatedTPS)
	} else {
		fmt.Fprintf(w, "\nno pipeline: %s\n", r.Uncovered)
	}
	if len(r.LeftOut) > 0 {
		fmt.Fprintln(w, "\nLEFT OUT\tREASON")
		for _, l := range r.LeftOut {
			fmt.Fprintf(w, "%s\t%s\n", l.Host, l.Reason)
		}
	}
	if len(r.Moves) > 0 {
		fmt.Fprintln(w, "\nSTEP\tMOVE\tHOST\tLAYERS\tBYTES")
		for _, v := range r.Moves {
			fmt.Fprintf(w, "%d\t%s\t%s\t%d-%d\t%d\n", v.Step, v.Action, v.Host, v.Lo, v.Hi, v.Bytes)
		}
	}
	return w.Flush()
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", mib(n)) }
