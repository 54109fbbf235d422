package shard_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// pairVector is a model of dpo.json, computed with PyTorch and PEFT.
type pairVector struct {
	Beta  float64 `json:"beta"`
	Pairs []struct {
		Prompt            []int32 `json:"prompt"`
		Chosen            []int32 `json:"chosen"`
		Rejected          []int32 `json:"rejected"`
		PolicyChosen      float64 `json:"policy_chosen"`
		PolicyRejected    float64 `json:"policy_rejected"`
		ReferenceChosen   float64 `json:"reference_chosen"`
		ReferenceRejected float64 `json:"reference_rejected"`
		Margin            float64 `json:"margin"`
		Loss              float64 `json:"loss"`
	} `json:"pairs"`
	Gradients map[string]float64 `json:"adapter_gradients"`
}

func sharedPath(t *testing.T, parts ...string) string {
	t.Helper()
	dir := os.Getenv("LAMINA_SHARED")
	if dir == "" {
		dir = "../../../shared"
	}
	path, err := filepath.Abs(filepath.Join(append([]string{dir}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no %s: set LAMINA_SHARED", path)
	}
	return path
}

func readPairVectors(t *testing.T) map[string]pairVector {
	t.Helper()
	text, err := os.ReadFile(sharedPath(t, "vectors", "tuning", "dpo.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Models map[string]pairVector `json:"models"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v.Models
}

// pairLength is the rows of a sequence with a pair.
const pairLength = 32

// pairOpening returns the first frame of a lone stage that trains the adapter of tiny-lora on pairs.
func pairOpening(t *testing.T, name string, beta float64, slots int) *shardv1.TrainOpen {
	t.Helper()
	base, low := sharedPath(t, "models", "tiny", name), sharedPath(t, "models", "tiny-lora", name)
	config, err := os.ReadFile(filepath.Join(base, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := adapter.Open(low)
	if err != nil {
		t.Fatal(err)
	}
	lowConfig, err := a.JSON()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := weights.Digest(base)
	if err != nil {
		t.Fatal(err)
	}
	lowDigest, err := adapter.Digest(low)
	if err != nil {
		t.Fatal(err)
	}
	var sizes struct {
		Layers int `json:"num_hidden_layers"`
	}
	if err := json.Unmarshal(config, &sizes); err != nil {
		t.Fatal(err)
	}
	o := trainOpening(0, 1)
	o.ConfigJson, o.Spans, o.Slots = config, []*shardv1.Span{{Hi: uint32(sizes.Layers)}}, uint32(slots)
	o.SequenceLen, o.IsolateDocuments = pairLength, true
	o.Initial = &shardv1.InitialWeights{Path: base, Digest: digest}
	o.Adapter = &shardv1.TrainAdapter{ConfigJson: lowConfig,
		Initial: &shardv1.InitialWeights{Path: low, Digest: lowDigest}}
	o.Objective = &shardv1.Objective{Kind: &shardv1.Objective_Dpo{Dpo: &shardv1.DPO{Beta: beta}}}
	return o
}

// pairSlot returns the data of a slot with one pair.
func pairSlot(v *pairVector, slot int) *shardv1.Microbatch {
	p := v.Pairs[slot]
	m := &shardv1.Microbatch{Step: 1, Slot: uint32(slot), Sequences: 1, Length: pairLength,
		Pairs: []*shardv1.Pair{{Chosen: 0, Rejected: 1, ReferenceChosen: p.ReferenceChosen,
			ReferenceRejected: p.ReferenceRejected}}}
	left := uint32(pairLength)
	for _, answer := range [][]int32{p.Chosen, p.Rejected} {
		ids := append(append([]int32{}, p.Prompt...), answer...)
		for i, id := range ids[:len(ids)-1] {
			m.Ids = append(m.Ids, uint32(id))
			target := int32(-1)
			if i+1 >= len(p.Prompt) {
				target = ids[i+1]
			}
			m.Targets = append(m.Targets, target)
		}
		m.Documents = append(m.Documents, uint32(len(ids)-1))
		left -= uint32(len(ids) - 1)
	}
	for range left {
		m.Ids, m.Targets = append(m.Ids, 0), append(m.Targets, -1)
	}
	m.Documents = append(m.Documents, left)
	return m
}

// sendPairs sends a step over all pairs.
func (c *conversation) sendPairs(v *pairVector, base bool) {
	s := &shardv1.Step{Step: 1, Targets: uint64(len(v.Pairs)), ForwardOnly: base, Base: base}
	for i := range v.Pairs {
		s.Slots = append(s.Slots, uint32(i))
	}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: s}})
	for i := range v.Pairs {
		c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: pairSlot(v, i)}})
	}
}

// Sums, losses and gradients of pairs are those of PyTorch and PEFT.
func TestTrain_PairsLikePEFT(t *testing.T) {
	for name, v := range readPairVectors(t) {
		t.Run(name, func(t *testing.T) {
			c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(pairOpening(t, name, v.Beta, len(v.Pairs)))
			near := func(what string, got, want float64) {
				t.Helper()
				if !(math.Abs(got-want) <= 1e-3*math.Max(math.Abs(want), 1e-2)) {
					t.Errorf("%s: %v, want %v", what, got, want)
				}
			}
			c.sendPairs(&v, true)
			for i, p := range v.Pairs {
				got := c.next().GetLoss().GetPairs()
				if len(got) != 1 {
					t.Fatalf("%d pairs of slot %d", len(got), i)
				}
				near("reference chosen", got[0].GetChosen(), p.ReferenceChosen)
				near("reference rejected", got[0].GetRejected(), p.ReferenceRejected)
			}
			c.sendPairs(&v, false)
			for i, p := range v.Pairs {
				l := c.next().GetLoss()
				got := l.GetPairs()
				if len(got) != 1 || l.GetTargets() != 1 || l.GetSum() != got[0].GetLoss() {
					t.Fatalf("slot %d: %v", i, l)
				}
				near("chosen", got[0].GetChosen(), p.PolicyChosen)
				near("rejected", got[0].GetRejected(), p.PolicyRejected)
				near("margin", got[0].GetMargin(), p.Margin)
				near("loss", got[0].GetLoss(), p.Loss)
			}
			norms := c.next().GetFolded().GetNorms()
			if len(norms) != len(v.Gradients) {
				t.Errorf("%d gradients, want %d", len(norms), len(v.Gradients))
			}
			for _, n := range norms {
				want, ok := v.Gradients["base_model.model."+n.GetName()]
				if !ok {
					t.Errorf("no gradient of %s in the vectors", n.GetName())
					continue
				}
				if got := math.Sqrt(n.GetSumSquares()); !(math.Abs(got-want) <= 1e-3*want) {
					t.Errorf("gradient of %s: norm %v, want %v", n.GetName(), got, want)
				}
			}
			c.end()
		})
	}
}

func TestTrain_WrongPairsNameTheField(t *testing.T) {
	v := readPairVectors(t)["llama"]
	for name, change := range map[string]func(*shardv1.Microbatch){
		"no pairs":          func(m *shardv1.Microbatch) { m.Pairs = nil },
		"unknown document":  func(m *shardv1.Microbatch) { m.Pairs[0].Rejected = 9 },
		"same document":     func(m *shardv1.Microbatch) { m.Pairs[0].Rejected = 0 },
		"answer is empty":   func(m *shardv1.Microbatch) { m.Pairs[0].Rejected = 2 },
		"target of nothing": func(m *shardv1.Microbatch) { m.Targets[len(m.Targets)-1] = 3 },
		"short documents":   func(m *shardv1.Microbatch) { m.Documents = m.Documents[:2] },
		"no reference":      func(m *shardv1.Microbatch) { m.Pairs[0].ReferenceChosen = math.NaN() },
		"infinite":          func(m *shardv1.Microbatch) { m.Pairs[0].ReferenceRejected = math.Inf(-1) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newTrainRig(t, gradbus.NewMemory(busLimit)).train(pairOpening(t, "llama", 0.1, 1))
			c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Step{Step: &shardv1.Step{Step: 1, Targets: 1,
				Slots: []uint32{0}}}})
			m := pairSlot(&v, 0)
			change(m)
			c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Microbatch{Microbatch: m}})
			if err := c.fails(); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "pairs") {
				t.Errorf("error %v", err)
			}
		})
	}
}
