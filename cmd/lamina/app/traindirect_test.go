package app_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/shard"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// lastBytes returns the bytes of gradients of the last step: on the bus and directly between replicas.
func lastBytes(t *testing.T, out string) (bus, direct uint64) {
	t.Helper()
	f, err := os.Open(filepath.Join(out, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l struct {
			Bus    uint64 `json:"gradient_bytes"`
			Direct uint64 `json:"direct_bytes"`
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		bus, direct = l.Bus, l.Direct
	}
	return bus, direct
}

// placements are ways in which shards are on machines. The shard of stage s of replica r is number r*stages + s.
func placements() map[string]func(shard string) string {
	number := func(name string) (n int) {
		if _, err := fmt.Sscanf(name, "shard-%d", &n); err != nil {
			panic(err)
		}
		return n
	}
	return map[string]func(string) string{
		"one machine":         func(string) string { return "a" },
		"two halves":          func(name string) string { return fmt.Sprint(number(name) / 4) },
		"in turn":             func(name string) string { return fmt.Sprint(number(name) / 2 % 2) },
		"one apart":           func(name string) string { return fmt.Sprint(number(name) == 3) },
		"some are not known":  func(name string) string { return []string{"a", "a", "", "", "", "", "b", "b"}[number(name)] },
		"each has a machine":  func(name string) string { return name },
		"three of many sizes": func(name string) string { return []string{"a", "a", "b", "a", "a", "c", "c", "b"}[number(name)] },
	}
}

// TestTrain_DirectExchangeGivesTheSameWeights compares runs whose replicas exchange gradients directly, as far as
// they share machines, with a run without replicas.
func TestTrain_DirectExchangeGivesTheSameWeights(t *testing.T) {
	large := map[string]any{"steps": 2, "slots": 8, "slot_sequences": 1, "sequence_len": 6, // several buckets
		"model": map[string]any{"architecture": "llama", "layers": 3, "width": 128, "heads": 2, "ff": 640}}
	small := map[string]any{"steps": 3, "slots": 8}
	var all []string
	for name := range placements() {
		all = append(all, name)
	}
	for _, c := range []struct {
		name, wire string
		change     map[string]any
		placements []string
	}{
		{"f32", "f32", small, all},
		{"large", "f32", large, []string{"three of many sizes"}},
		{"bf16", "bf16", small, []string{"in turn", "one machine"}},
		{"int8", "int8", small, []string{"three of many sizes", "one machine"}},
		{"topk", "topk", small, []string{"in turn"}},
		{"diloco", "diloco", small, []string{"one machine"}},
	} {
		change := map[string]any{}
		for _, m := range []map[string]any{wires()[c.wire], c.change} {
			for k, v := range m {
				change[k] = v
			}
		}
		raw := manifest(t, "direct-"+c.name, change)
		calmOut := t.TempDir()
		calm := newTrainFleet(t, 1).watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
		for _, placement := range c.placements {
			f := (&trainFleet{bus: gradbus.NewMemory(64 << 20), host: placements()[placement]}).start(t, 8,
				trainer.Config{})
			for _, l := range [][2]uint32{{1, 4}, {2, 4}} {
				out := t.TempDir()
				got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l[0], Replicas: l[1],
					Out: out}, nil)
				what := fmt.Sprintf("%s, %s, over %v", c.name, placement, l)
				same(t, what, out, calmOut, got, calm)
				bus, direct := lastBytes(t, out)
				switch {
				case c.wire == "diloco" || placement == "each has a machine" ||
					placement == "some are not known" && l[0] == 2: // where the known ones are those of one replica
					if direct > 0 {
						t.Errorf("%s: %d bytes directly", what, direct)
					}
				case direct == 0:
					t.Errorf("%s: nothing directly", what)
				case placement == "one machine" && l[0] == 1 && bus > 0:
					t.Errorf("%s: %d bytes on the bus", what, bus)
				}
			}
		}
	}
}

// TestTrain_DirectExchangeSavesBytesOnTheBus counts what goes between machines.
func TestTrain_DirectExchangeSavesBytesOnTheBus(t *testing.T) {
	raw := func(direct string) []byte {
		return manifest(t, "saves", map[string]any{"steps": 2, "slots": 8,
			"gradients": map[string]any{"direct": direct}})
	}
	f := (&trainFleet{bus: gradbus.NewMemory(64 << 20), host: placements()["two halves"]}).start(t, 8, trainer.Config{})
	sent := map[string]uint64{}
	for _, direct := range []string{"auto", "off"} {
		out := t.TempDir()
		f.watch(&trainerv1.StartRunRequest{ManifestJson: raw(direct), Stages: 1, Replicas: 8, Out: out}, nil)
		bus, near := lastBytes(t, out)
		if (near > 0) != (direct == "auto") {
			t.Errorf("%s: %d bytes directly", direct, near)
		}
		sent[direct] = bus
	}
	if 3*sent["auto"] > sent["off"] {
		t.Errorf("%d bytes between two machines of four replicas, %d without direct exchange", sent["auto"], sent["off"])
	}
}

// deaf cannot reach other shards.
type deaf struct{}

func (deaf) Dial(addr string) (*grpc.ClientConn, error) {
	return nil, fault.New(fault.Unavailable, "dial %s: no route", addr)
}

// TestTrain_BrokenDirectExchangeFallsBackToTheBus lets shards of one machine not reach each other. No replica is
// lost by that.
func TestTrain_BrokenDirectExchangeFallsBackToTheBus(t *testing.T) {
	for _, wire := range []string{"f32", "int8"} {
		raw := manifest(t, "deaf-"+wire, map[string]any{"steps": 3, "gradients": wires()[wire]["gradients"]})
		calmOut, out := t.TempDir(), t.TempDir()
		calm := newTrainFleet(t, 1).watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
		f := (&trainFleet{bus: gradbus.NewMemory(64 << 20), host: placements()["one machine"],
			peers: func(*rpc.Dialer) shard.Dialer { return deaf{} }}).start(t, 2, trainer.Config{})
		got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: 1, Replicas: 2, Out: out}, nil)
		same(t, wire+" over two replicas that do not reach each other", out, calmOut, got, calm)
		if bus, direct := lastBytes(t, out); bus == 0 || direct > 0 || got.GetLost() > 0 {
			t.Errorf("%s: %d bytes on the bus, %d directly, %d replicas lost", wire, bus, direct, got.GetLost())
		}
	}
}
