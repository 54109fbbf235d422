package router

// These tests are internal because the index of adapters is not exported.

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// digestOf returns a digest that a number distinguishes.
func digestOf(n int) string { return "sha256:" + strings.Repeat(string(rune('a'+n%6)), 64) }

func TestParseIndex_DamageIsFound(t *testing.T) {
	good := indexedName{Model: "sha256:base", Name: "x", Since: time.Unix(5, 0).UTC(),
		Versions: []indexedFolder{{Digest: digestOf(0)}, {Digest: digestOf(1), Dir: "/d", AnyBase: true}}}
	text, err := json.Marshal([]indexedName{good})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseIndex(text); err != nil || !reflect.DeepEqual(got, []indexedName{good}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, change := range map[string]func(*indexedName){
		"no name":           func(n *indexedName) { n.Name = "" },
		"a path":            func(n *indexedName) { n.Name = "../x" },
		"no versions":       func(n *indexedName) { n.Versions = nil },
		"too many versions": func(n *indexedName) { n.Versions = make([]indexedFolder, maxEarlier+2) },
		"no digest":         func(n *indexedName) { n.Versions[1].Digest = "" },
		"a short digest":    func(n *indexedName) { n.Versions[0].Digest = "sha256:aa" },
	} {
		bad := good
		bad.Versions = append([]indexedFolder(nil), good.Versions...)
		change(&bad)
		text, err := json.Marshal([]indexedName{bad})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseIndex(text); fault.CodeOf(err) != fault.DataLoss {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "{}", "[{", "[1]", strings.Repeat(" ", maxAdapterIndex+1)} {
		if _, err := parseIndex([]byte(text)); fault.CodeOf(err) != fault.DataLoss {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// TestAdapters_NamesOfModelsThatAreNotServedStay saves the index while one of its models is not there.
func TestAdapters_NamesOfModelsThatAreNotServedStay(t *testing.T) {
	dir := t.TempDir()
	text, err := json.Marshal([]indexedName{
		{Model: "sha256:one", Name: "x", Versions: []indexedFolder{{Digest: digestOf(0)}}},
		{Model: "sha256:two", Name: "y", Versions: []indexedFolder{{Digest: digestOf(1)}, {Digest: digestOf(2)}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, adapterIndex), text, 0o600); err != nil {
		t.Fatal(err)
	}
	l := newAdapters(Config{AdapterDir: dir})
	if l.indexed, err = l.store.index(); err != nil {
		t.Fatal(err)
	}
	l.restore("sha256:one", "one")
	l.remove(adapterName{"sha256:one", "x"}, time.Now())
	if err := l.store.write(l.index()); err != nil {
		t.Fatal(err)
	}
	left, err := l.store.index()
	if err != nil || len(left) != 1 || left[0].Name != "y" || len(left[0].Versions) != 2 {
		t.Errorf("the index has %+v, %v", left, err)
	}
	if needed := l.needed(); len(needed) != 2 {
		t.Errorf("%d adapters are needed, want the two of y", len(needed))
	}
}

// TestSyncAdapters_WhatIsGoneIsForgotten drops an adapter that nobody wants, although a range that its shard no longer
// has was the last to hold it, and with it why another range could not load it.
func TestSyncAdapters_WhatIsGoneIsForgotten(t *testing.T) {
	s := New(Config{})
	s.instances["shard"] = []discovery.Instance{{ID: "s", Service: "shard", Addr: "here"}}
	s.held["s"] = described{addr: "here", resp: &shardv1.DescribeResponse{Held: []*shardv1.Held{
		{Digest: "m", Lo: 0, Hi: 1},
	}}}
	sum, _ := adapter.ParseSum(digestOf(0))
	l := s.adapters
	l.all[adapterKey{"m", sum}] = &servedAdapter{model: "m", digest: sum}
	l.at[place{"here", "m", 1, 2}] = map[adapter.Sum]bool{sum: true}
	l.at[place{"elsewhere", "m", 1, 2}] = map[adapter.Sum]bool{sum: true}
	l.failed[place{"here", "m", 0, 1}] = map[adapter.Sum]*adapterFailed{sum: {tries: 9}}
	l.failed[place{"elsewhere", "m", 0, 1}] = map[adapter.Sum]*adapterFailed{sum: {tries: 9}}
	var wg sync.WaitGroup
	s.syncAdapters(t.Context(), &wg, func() {})
	wg.Wait()
	if len(l.all) != 0 || len(l.at) != 0 || len(l.failed) > 1 || len(l.failed[place{"here", "m", 0, 1}]) != 0 {
		t.Errorf("left are %v, held at %v, failed at %v", l.all, l.at, l.failed)
	}
}

// TestBorrow_PlacesShareAnAdapterInMemory borrows an adapter several times at once.
func TestBorrow_PlacesShareAnAdapterInMemory(t *testing.T) {
	dir := t.TempDir()
	values := &adapter.Adapter{
		Config: adapter.Config{Base: "m", Rank: 1, Alpha: 1, Targets: adapter.Pattern{Names: []string{"q_proj"}}},
		Modules: []adapter.Module{{Name: "model.layers.0.self_attn.q_proj", Rank: 1, Scale: 1, In: 2, Out: 1,
			A: []float32{1, 2}, B: []float32{1}}},
	}
	if err := adapter.Write(dir, values); err != nil {
		t.Fatal(err)
	}
	s := New(Config{})
	good := &servedAdapter{model: "m", digest: values.Outline().Digest(), dir: dir}
	var wg sync.WaitGroup
	all := make([]*adapterReading, 8)
	for i := range all {
		wg.Go(func() {
			r, err := s.borrow(t.Context(), good)
			if err != nil {
				t.Error(err)
			}
			all[i] = r
		})
	}
	wg.Wait()
	for _, r := range all {
		if r == nil || r != all[0] || len(r.values.Modules) != 1 {
			t.Fatalf("borrowed are %v", all)
		}
	}
	for _, r := range all {
		if len(s.adapters.readings) != 1 {
			t.Error("it is not in memory while it is used")
		}
		s.giveBack(good, r)
	}
	bad := &servedAdapter{model: "m", dir: t.TempDir()}
	if _, err := s.borrow(t.Context(), bad); err == nil {
		t.Error("a folder without an adapter was read")
	}
	if len(s.adapters.readings) != 0 {
		t.Errorf("%d adapters stay in memory", len(s.adapters.readings))
	}
}

// FuzzParseIndex reads indices of any bytes. One that is read can be written and read again.
func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`[{"model":"m","name":"x","since":"2026-11-29T00:00:00Z","versions":[{"digest":"` + digestOf(0) + `"}]}]`))
	f.Add([]byte(`[{"name":"x","versions":[{"digest":"` + digestOf(3) + `","dir":"..","any_base":true}]},{"name":"y"}]`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := parseIndex(text)
		if err != nil {
			if fault.CodeOf(err) != fault.DataLoss {
				t.Errorf("code %v: %v", fault.CodeOf(err), err)
			}
			return
		}
		l := newAdapters(Config{AdapterDir: t.TempDir()})
		l.indexed = list
		for _, in := range list { // must not panic, and keeps each name's versions apart
			l.restore(in.Model, "model")
		}
		for key, n := range l.names {
			for _, v := range n.earlier {
				if v.digest == n.current.digest {
					t.Errorf("%v has its current version among the earlier ones", key)
				}
			}
		}
		if err := l.store.write(l.index()); err != nil {
			t.Fatal(err)
		}
		if again, err := l.store.index(); err != nil || len(again) != len(l.names) {
			t.Errorf("%d names are read as %d, %v", len(l.names), len(again), err)
		}
	})
}
