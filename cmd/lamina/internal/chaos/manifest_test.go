package chaos_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/chaos"
	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestParseManifest_DefaultsAndFields(t *testing.T) {
	m, err := chaos.ParseManifest([]byte(`{
		"name": "n", "duration": "20s", "stall_limit": "500ms",
		"fleet": {"stages": 3, "samplers": 2, "args": {"router": ["--speculate=4"]}},
		"load": {"streams": 4, "tenants": "a=4,b=1", "prompts": ["one", {"prompt": "two", "temperature": 0}]},
		"faults": [
			{"kind": "kill", "target": "shard-*", "at": "1s", "every": "2s", "times": 3, "restart_after": "1s"},
			{"kind": "partition", "target": "shard-1-2", "direction": "in", "for": "3s"}
		]}`))
	if err != nil {
		t.Fatal(err)
	}
	if m.Fleet.Stages != 3 || m.Fleet.Replicas != 2 || m.Fleet.Samplers != 2 ||
		m.Fleet.Args["router"][0] != "--speculate=4" {
		t.Errorf("the fleet is %+v", m.Fleet)
	}
	if m.Load.Streams != 4 || m.Load.MaxTokens != 64 || len(m.Load.Tenants) != 2 || m.Load.Prompts[1].Text != "two" ||
		string(m.Load.Prompts[1].Extra["temperature"]) != "0" {
		t.Errorf("the load is %+v", m.Load)
	}
	if m.StallLimit != 500*time.Millisecond || m.LeastTokens != 100 || m.Calm != 5*time.Second {
		t.Errorf("the manifest is %+v", m)
	}
	kill, cut := m.Faults[0], m.Faults[1]
	if kill.Times != 3 || kill.Every != 2*time.Second || kill.Promise != "S1" || kill.Pick != "random" ||
		kill.Line != 6 {
		t.Errorf("the first fault is %+v", kill)
	}
	if cut.Promise != "S2" || cut.Direction != "in" || cut.For != 3*time.Second {
		t.Errorf("the second fault is %+v", cut)
	}
}

func TestParseManifest_FaultsTestTheirPromise(t *testing.T) {
	for fault, want := range map[string]chaos.Promise{
		`"kind":"kill","target":"shard-*"`:                     "S1",
		`"kind":"reset","target":"shard-0-1"`:                  "S1",
		`"kind":"pause","target":"shard-*"`:                    "S2",
		`"kind":"slow","target":"shard-*"`:                     "S2",
		`"kind":"kill","target":"sampler-0"`:                   "S3",
		`"kind":"kill","target":"shard-*-1","pick":"all"`:      "S4",
		`"kind":"pause","target":"shard-*","pick":"all"`:       "S4",
		`"kind":"kill","target":"shard-0-*","pick":"all"`:      "S1",
		`"kind":"slow_readers"`:                                "S10",
		`"kind":"restart","target":"*-0","pick":"each"`:        "S11",
		`"kind":"kill","target":"registry"`:                    "S12",
		`"kind":"kill","target":"router-0"`:                    "S13",
		`"kind":"kill","target":"tokenizer-0","promise":"S11"`: "S11",
	} {
		m, err := chaos.ParseManifest([]byte(`{"faults":[{` + fault + `}]}`))
		if err != nil {
			t.Errorf("%s: %v", fault, err)
		} else if got := m.Faults[0].Promise; got != want {
			t.Errorf("%s tests %s, want %s", fault, got, want)
		}
	}
}

func TestParseManifest_ErrorsNameFieldAndLine(t *testing.T) {
	for text, want := range map[string][]string{
		``:                                       {"line 1"},
		`[]`:                                     {"line 1", "object"},
		`{} {}`:                                  {"line 1", "nothing after"},
		"{\n\"name\": \"a\",\n\"nam\": 1}":       {"nam:", "line 3", "unknown field"},
		"{\n\n\"name\": 7}":                      {"name:", "line 3", "a string"},
		"{\"seed\": 1,\n\"seed\": 2}":            {"seed:", "line 2", "twice"},
		"{\"name\": \"a\",,}":                    {"line 1"},
		"{\"name\":\n\"a\",\n\"calm\": \"x\"\n}": {"calm:", "line 3", "duration"},
		`{"duration":"0s"}`:                      {"duration:", "line 1"},
		"{\"fleet\":\n{\"stages\": 0}}":          {"fleet.stages:", "line 2", "1 to 64"},
		`{"fleet":{"stages":1.5}}`:               {"fleet.stages:"},
		`{"fleet":{"args":{"shard":[1]}}}`:       {"fleet.args.shard[0]:", "a string"},
		`{"fleet":{"args":{"trainer":[]}}}`:      {"fleet.args.trainer:", "unknown"},
		`{"fleet":[]}`:                           {"fleet:", "an object"},
		`{"load":{"rate":-1}}`:                   {"load.rate:"},
		`{"load":{"tenants":"a=x"}}`:             {"load.tenants:", "weight"},
		"{\"load\":{\"prompts\":[\"a\",\n{\"seed\":1}]}}": {"load.prompts[1]:", "line 2", "prompt"},
		`{"load":{"prompts":[7]}}`:                        {"load.prompts[0]:"},
		"{\"faults\":[\n{\"kind\":\"kill\",\"target\":\"shard-9-9\"}]}": {"faults[0]:", "line 2", "matches no member",
			"shard-1-1"},
		`{"faults":[{"target":"shard-0-0"}]}`:                            {"faults[0]:", "kind"},
		`{"faults":[{"kind":"explode","target":"shard-0-0"}]}`:           {"faults[0].kind:", "explode"},
		`{"faults":[{"kind":"kill","target":"shard-*","at":"31s"}]}`:     {"faults[0]:", "after 30s"},
		`{"faults":[{"kind":"kill","target":"shard-*","times":2}]}`:      {"faults[0]:", "every"},
		`{"faults":[{"kind":"pause","target":"registry"}]}`:              {"faults[0]:", "registry"},
		`{"faults":[{"kind":"partition","target":"router-0"}]}`:          {"faults[0]:", "router"},
		`{"faults":[{"kind":"slow_readers","target":"shard-0-0"}]}`:      {"faults[0]:", "router"},
		`{"faults":[{"kind":"kill","target":"shard-*","promise":"S5"}]}`: {"faults[0].promise:", "S12"},
		`{"faults":[7]}`:             {"faults[0]:"},
		strings.Repeat(`{"a":`, 100): {"levels"},
	} {
		_, err := chaos.ParseManifest([]byte(text))
		if fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%.60q: got %v", text, err)
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%.60q: got %q, want %q in it", text, err, part)
			}
		}
	}
}

func TestParseManifest_ExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob("../../../../examples/chaos/*.json")
	if err != nil || len(files) < 8 {
		t.Fatalf("found %d examples, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := chaos.ParseManifest(text)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		} else if len(m.Faults) == 0 || m.Name == "chaos" {
			t.Errorf("%s: has no fault or no name", file)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	files, err := filepath.Glob("../../../../examples/chaos/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"load":{"prompts":["a",{"messages":[{}]}],"tenants":"a=2"},"faults":[{"kind":"slow_readers"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := chaos.ParseManifest(text)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Errorf("got code %v: %v", fault.CodeOf(err), err)
			}
			return
		}
		for _, f := range m.Faults {
			if f.Promise == "" || f.Kind == "" || f.Times < 1 || f.At+time.Duration(f.Times-1)*f.Every >= m.Duration {
				t.Errorf("accepted the fault %+v", f)
			}
		}
	})
}
