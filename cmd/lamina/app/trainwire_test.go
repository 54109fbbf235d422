package app_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// lossy is a bus that acks a share of new events without storing them, delivers a share twice and in another
// order, and forgets all that it holds from time to time. Decisions depend on the key and the attempt.
type lossy struct {
	gradbus.Bus
	drop, duplicate uint32 // per cent
	erase           uint64 // forget everything when a step is seen that this divides; 0 never

	mu       sync.Mutex
	attempts map[gradbus.Key]uint32
	erased   map[uint64]bool
	dropped  int
	erasures int
}

func newLossy(bus gradbus.Bus, drop, duplicate uint32, erase uint64) *lossy {
	return &lossy{Bus: bus, drop: drop, duplicate: duplicate, erase: erase, attempts: map[gradbus.Key]uint32{},
		erased: map[uint64]bool{}}
}

func chance(k gradbus.Key, attempt uint32) uint32 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %d %d-%d %d %d", k.Part, k.Step, k.SlotLo, k.SlotHi, k.Chunk, attempt)
	return h.Sum32() % 100
}

func (b *lossy) Publish(ctx context.Context, e gradbus.Event) error {
	b.mu.Lock()
	b.attempts[e.Key]++
	lost := chance(e.Key, b.attempts[e.Key]) < b.drop
	if lost {
		b.dropped++
	}
	if b.erase > 0 && e.Key.Step%b.erase == 0 && b.attempts[e.Key] == 1 && !b.erased[e.Key.Step] &&
		e.Key.SlotLo > 0 {
		b.erased[e.Key.Step] = true
		b.erasures++
		if err := b.Remove(ctx, e.Key.Run); err != nil {
			b.mu.Unlock()
			return err
		}
	}
	b.mu.Unlock()
	if lost {
		return nil
	}
	return b.Bus.Publish(ctx, e)
}

func (b *lossy) Subscribe(ctx context.Context, run, part string, from uint64) (gradbus.Subscription, error) {
	s, err := b.Bus.Subscribe(ctx, run, part, from)
	return &lossySubscription{Subscription: s, bus: b}, err
}

// lossySubscription delivers some events again, right after one that came later.
type lossySubscription struct {
	gradbus.Subscription
	bus    *lossy
	queue  []gradbus.Event
	repeat *gradbus.Event
}

func (s *lossySubscription) Next(ctx context.Context) (gradbus.Event, error) {
	if len(s.queue) > 0 {
		e := s.queue[0]
		s.queue = s.queue[1:]
		return e, nil
	}
	e, err := s.Subscription.Next(ctx)
	if err != nil {
		return e, err
	}
	if s.repeat != nil {
		s.queue, s.repeat = append(s.queue, *s.repeat), nil
	}
	if chance(e.Key, 0) < s.bus.duplicate {
		s.repeat = &e
	}
	return e, nil
}

// wires lists the wire types as parts of manifests.
func wires() map[string]map[string]any {
	return map[string]map[string]any{
		"f32":    {},
		"bf16":   {"gradients": map[string]any{"wire": "bf16", "nodes": 4}},
		"int8":   {"gradients": map[string]any{"wire": "int8", "nodes": 4}},
		"topk":   {"gradients": map[string]any{"wire": "topk", "nodes": 4, "density": 0.1}},
		"diloco": {"diloco": map[string]any{"workers": 4, "interval": 2}},
		"streamed diloco": {
			"diloco":    map[string]any{"workers": 4, "interval": 4, "fragments": 2, "delay": 1, "mix": 0.5},
			"gradients": map[string]any{"wire": "int8"},
		},
	}
}

// gradientLines reads what metrics.jsonl says about gradients.
func gradientLines(t *testing.T, out string) (bytes uint64, ratio, left float64) {
	t.Helper()
	f, err := os.Open(filepath.Join(out, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l struct {
			Bytes uint64  `json:"gradient_bytes"`
			Ratio float64 `json:"gradient_ratio"`
			Error float64 `json:"gradient_error"`
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		bytes, ratio, left = l.Bytes, l.Ratio, max(left, l.Error)
	}
	return bytes, ratio, left
}

func TestTrain_AnyWireTypeIsExactOverLayoutsAndFaults(t *testing.T) {
	digests := map[string]string{}
	for name, change := range wires() {
		t.Run(name, func(t *testing.T) {
			raw := manifest(t, strings.ReplaceAll("wire-"+name, " ", "-"), change)
			f := newTrainFleet(t, 16)
			calmOut := t.TempDir()
			calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
			digests[name] = calm.GetWeightsDigest()
			for stages := uint32(1); stages <= 4; stages *= 2 {
				for replicas := uint32(1); replicas <= 4; replicas *= 2 {
					out := t.TempDir()
					got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: stages, Replicas: replicas,
						Out: out}, nil)
					same(t, fmt.Sprintf("%s over %d x %d", name, stages, replicas), out, calmOut, got, calm)
					bytes, ratio, left := gradientLines(t, out)
					if (bytes > 0) != (stages > 1 || replicas > 1) || replicas > 1 && ratio == 0 ||
						(left > 0) != (name != "f32" && name != "diloco") {
						t.Errorf(
							"%s over %d x %d: %d bytes, ratio %v, error %v",
							name,
							stages,
							replicas,
							bytes,
							ratio,
							left,
						)
					}
				}
			}
			bus := newLossy(f.bus, 10, 20, 2)
			g := newTrainFleetOn(t, 8, bus, 20*time.Millisecond)
			for _, l := range [][2]uint32{{1, 4}, {2, 2}, {2, 4}} {
				out := t.TempDir()
				got := g.watch(
					&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l[0], Replicas: l[1], Out: out},
					nil,
				)
				same(
					t,
					fmt.Sprintf("%s over %v on a bus that loses, repeats, reorders and forgets", name, l),
					out,
					calmOut,
					got,
					calm,
				)
			}
			if bus.dropped == 0 || bus.erasures == 0 {
				t.Errorf("the bus dropped %d events and forgot %d times", bus.dropped, bus.erasures)
			}
		})
	}
	all := slices.Sorted(maps.Values(digests))
	if len(slices.Compact(all)) != len(wires()) {
		t.Errorf("the wire types give %d different results: %v", len(all), digests)
	}
}

// TestTrain_StateOfWireTypesIsInCheckpoints stops runs and resumes them on other layouts.
func TestTrain_StateOfWireTypesIsInCheckpoints(t *testing.T) {
	for _, name := range []string{"int8", "topk", "diloco", "streamed diloco"} {
		change := wires()[name]
		change["checkpoint_every"] = 4 // with differences on their way
		raw := manifest(t, strings.ReplaceAll("residual-"+name, " ", "-"), change)
		f := newTrainFleet(t, 8)
		calmOut, out := t.TempDir(), t.TempDir()
		calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut, Stages: 2}, nil)
		for i, l := range [][2]uint32{{1, 2}, {2, 4}, {4, 1}} {
			f.watch(
				&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l[0], Replicas: l[1], Out: out, Resume: i > 0},
				nil,
			)
			// Take away the newest checkpoint, so that the next layout repeats the last steps.
			last := filepath.Join(out, "checkpoints", "step-00000006")
			if err := os.RemoveAll(last); err != nil {
				t.Fatal(err)
			}
		}
		got := f.watch(
			&trainerv1.StartRunRequest{ManifestJson: raw, Stages: 2, Replicas: 2, Out: out, Resume: true},
			nil,
		)
		same(t, name, out, calmOut, got, calm)
	}
}
