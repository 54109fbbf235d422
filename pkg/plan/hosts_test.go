package plan_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

const twoHosts = `{"hosts": [
	{"id": "a", "memory_bytes": 8e9, "layer_ms": 0.5, "hop_ms": 0.2},
	{"id": "b", "memory_bytes": 1000000, "layer_ms": 1, "hop_ms": 0, "bandwidth_mbps": 100, "zone": "z",
	 "class": "cpu/7", "row_ms": 0.1, "layer_bytes": 5}
]}`

func TestParseHosts_AllFields(t *testing.T) {
	hosts, err := plan.ParseHosts([]byte(twoHosts))
	if err != nil {
		t.Fatal(err)
	}
	want := []plan.Host{
		{ID: "a", Memory: 8e9, LayerMS: 0.5, HopMS: 0.2},
		{ID: "b", Memory: 1e6, LayerMS: 1, Mbps: 100, Zone: "z", Class: "cpu/7", RowMS: 0.1, LayerBytes: 5},
	}
	if len(hosts) != 2 || hosts[0] != want[0] || hosts[1] != want[1] {
		t.Errorf("got %+v, want %+v", hosts, want)
	}
}

func TestParseHosts_HostileFilesNameFieldAndHost(t *testing.T) {
	host := func(fields string) string {
		return `{"hosts": [{"id": "ok", "memory_bytes": 1, "layer_ms": 1, "hop_ms": 1}, {` + fields + `}]}`
	}
	full := `"id": "x", "memory_bytes": 1, "layer_ms": 1, "hop_ms": 1`
	for _, c := range []struct{ text, field, host string }{
		{``, "hosts", ""},
		{`{`, "hosts", "offset 1"},
		{`[]`, "hosts", ""},
		{`null`, "hosts", ""},
		{`{}`, "hosts", ""},
		{`{"hosts": null}`, "hosts", ""},
		{`{"hosts": []}`, "hosts", ""},
		{`{"hosts": {}}`, "hosts", ""},
		{`{"hosts": [1]}`, "hosts[0]", ""},
		{`{"hosts": [null]}`, "hosts[0]", ""},
		{`{"hosts": [], "other": 1}`, "hosts", "other"},
		{twoHosts + "x", "hosts", ""},
		{twoHosts + twoHosts, "hosts", ""},
		{host(``), "hosts[1].id", ""},
		{host(`"id": ""`), "hosts[1].id", ""},
		{host(`"id": 5`), "hosts[1].id", ""},
		{host(`"id": null`), "hosts[1].id", ""},
		{host(`"id": "x"`), "hosts[1].memory_bytes", `"x"`},
		{host(strings.Replace(full, `"x"`, `"ok"`, 1)), "hosts[1].id", `"ok"`},
		{host(strings.Replace(full, `"memory_bytes": 1`, `"memory_bytes": -1`, 1)), "hosts[1].memory_bytes", `"x"`},
		{host(strings.Replace(full, `"memory_bytes": 1`, `"memory_bytes": 1.5`, 1)), "hosts[1].memory_bytes", `"x"`},
		{host(strings.Replace(full, `"memory_bytes": 1`, `"memory_bytes": "8"`, 1)), "hosts[1].memory_bytes", `"x"`},
		{host(strings.Replace(full, `"memory_bytes": 1`, `"memory_bytes": 1e30`, 1)), "hosts[1].memory_bytes", `"x"`},
		{host(strings.Replace(full, `"layer_ms": 1`, `"layer_ms": 0`, 1)), "hosts[1].layer_ms", `"x"`},
		{host(strings.Replace(full, `"layer_ms": 1`, `"layer_ms": -1`, 1)), "hosts[1].layer_ms", `"x"`},
		{host(strings.Replace(full, `"layer_ms": 1`, `"layer_ms": 1e999`, 1)), "hosts[1].layer_ms", `"x"`},
		{host(strings.Replace(full, `"layer_ms": 1`, `"layer_ms": null`, 1)), "hosts[1].layer_ms", `"x"`},
		{host(strings.Replace(full, `"layer_ms": 1`, `"layer_ms": 1e-300`, 1)), "hosts[1].layer_ms", `"x"`},
		{host(strings.Replace(full, `"hop_ms": 1`, `"hop_ms": -0.1`, 1)), "hosts[1].hop_ms", `"x"`},
		{host(strings.Replace(full, `"hop_ms": 1`, `"hop_ms": true`, 1)), "hosts[1].hop_ms", `"x"`},
		{host(full + `, "bandwidth_mbps": -5`), "hosts[1].bandwidth_mbps", `"x"`},
		{host(full + `, "zone": 5`), "hosts[1].zone", `"x"`},
		{host(full + `, "class": []`), "hosts[1].class", `"x"`},
		{host(full + `, "row_ms": -1`), "hosts[1].row_ms", `"x"`},
		{host(full + `, "layer_bytes": -1`), "hosts[1].layer_bytes", `"x"`},
		{host(full + `, "width_mm": 1`), "hosts[1]", `width_mm`},
	} {
		hosts, err := plan.ParseHosts([]byte(c.text))
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != fault.Invalid || f.Field != c.field || !strings.Contains(f.Msg, c.host) {
			t.Errorf("%s: got %v and %v, want an error of %s that has %q", c.text, hosts, err, c.field, c.host)
		}
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte(twoHosts))
	f.Add([]byte(`{"hosts": [{"id": "a", "memory_bytes": 1e15, "layer_ms": 1e9, "hop_ms": 1e9, "class": "x"}]}`))
	model := plan.Model{Name: "m", Layers: []int64{1e6, 2e6, 3e6}, Embedding: 1e6, Head: 1e6, KVBytes: 100,
		HiddenBytes: 1000, Replicas: 2}
	f.Fuzz(func(t *testing.T, text []byte) {
		hosts, err := plan.ParseHosts(text)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if len(hosts) > 20 {
			return
		}
		for _, goal := range []plan.Goal{plan.Latency, plan.Throughput, plan.FewestHosts} {
			// What has been read is in order, so a plan is possible or not, but no error.
			r := plan.Request{Hosts: hosts, Models: []plan.Model{model}, Goal: goal}
			p, err := plan.Place(r)
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			for _, l := range p.Pipelines {
				if !(l.Predicted.TokensPerS > 0 && l.Predicted.TTFTMS > 0) {
					t.Fatalf("%q: predicted %+v", text, l.Predicted)
				}
			}
			moves, err := plan.Moves(r, &plan.Plan{}, p)
			if n, _ := plan.Loads(moves); err != nil || n != 3*len(p.Pipelines) {
				t.Fatalf("%q: %d layers are loaded for %d pipelines: %v", text, n, len(p.Pipelines), err)
			}
		}
	})
}
