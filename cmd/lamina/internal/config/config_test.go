package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/config"
)

// cli is a command line like that of the program.
type cli struct {
	Config   string `help:"File."`
	LogLevel string `enum:"debug,info,warn" default:"warn" env:"LAMINA_LOG_LEVEL"`

	Router struct {
		HTTP   string        `name:"http" default:"127.0.0.1:8080"`
		Queue  int           `default:"256"`
		Drain  time.Duration `default:"20s"`
		Place  bool          `default:"true" negatable:""`
		Host   []string      `sep:"none"`
		Port   []int
		Seed   *uint64
		Secret string `name:"nats-token"`
	} `cmd:""`
	Keys struct {
		Create struct {
			Requests int
		} `cmd:""`
		List struct {
			Requests string
		} `cmd:""`
	} `cmd:""`
}

// parse parses a command line with a file.
func parse(t testing.TB, text string, args ...string) (*cli, *kong.Context, *config.File, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "lamina.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := config.Read(name)
	if err != nil {
		return nil, nil, nil, err
	}
	var c cli
	k, err := kong.New(&c, kong.Resolvers(f), config.Environment(), kong.Exit(func(int) { t.Fatal("exit") }))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Validate(k.Model); err != nil {
		return nil, nil, nil, err
	}
	parsed, err := k.Parse(args)
	return &c, parsed, f, err
}

const file = `# of this host
log-level: info
queue: 9
router:
  http: 0.0.0.0:80
  queue: 7
  drain: 3s
  place: false
  host: [a.example, "b,c"]
  port: [1, 2]
  seed: 18446744073709551615
keys: {create: {requests: 60}}
`

func TestFile_GivesFlagsTheirValues(t *testing.T) {
	c, _, _, err := parse(t, file, "router")
	if err != nil {
		t.Fatal(err)
	}
	r := c.Router
	if c.LogLevel != "info" || r.HTTP != "0.0.0.0:80" || r.Queue != 7 || r.Drain != 3*time.Second || r.Place ||
		!reflect.DeepEqual(r.Host, []string{"a.example", "b,c"}) || !reflect.DeepEqual(r.Port, []int{1, 2}) ||
		r.Seed == nil || *r.Seed != 1<<64-1 {
		t.Errorf("the settings are %+v", c)
	}
	if c, _, _, err = parse(t, file, "keys", "create"); err != nil || c.Keys.Create.Requests != 60 {
		t.Errorf("keys create: %+v, %v", c, err)
	}
}

// A flag wins over the environment, the environment over the file, and the file over the default.
func TestFile_Precedence(t *testing.T) {
	for _, test := range []struct {
		file, env string
		args      []string
		want      int
		source    string
	}{
		{"router: {queue: 7}", "8", []string{"--queue=9"}, 9, "flag"},
		{"router: {queue: 7}", "8", nil, 8, "environment LAMINA_QUEUE"},
		{"router: {queue: 7}", "", nil, 7, "lamina.yaml:1"},
		{"queue: 6\nrouter: {queue: 7}", "", nil, 7, "lamina.yaml:2"},
		{"queue: 6", "", nil, 6, "lamina.yaml:1"},
		{"", "", nil, 256, "default"},
		{"", "8", nil, 8, "environment LAMINA_QUEUE"},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			t.Setenv("LAMINA_QUEUE", test.env) // empty counts as not set
			c, parsed, f, err := parse(t, test.file, append([]string{"router"}, test.args...)...)
			if err != nil {
				t.Fatal(err)
			}
			if c.Router.Queue != test.want {
				t.Errorf("--queue is %d, want %d", c.Router.Queue, test.want)
			}
			for _, s := range config.Effective(parsed, f) {
				if s.Name == "queue" && (s.Value != test.want || !strings.HasSuffix(s.Source, test.source)) {
					t.Errorf("it is said to be %v from %s, want %d from %s", s.Value, s.Source, test.want, test.source)
				}
			}
		})
	}
}

// Errors name the file, the line and the key.
func TestFile_ErrorsNameFileLineAndKey(t *testing.T) {
	for text, want := range map[string]string{
		"log-level: loud":            `lamina.yaml:1: log-level: want one of debug, info, warn, got "loud"`,
		"\nrouter:\n  queue: many":   "lamina.yaml:3: router.queue: ",
		"router:\n  htttp: x":        "lamina.yaml:2: router.htttp: there is no such flag: did you mean http?",
		"routr: {http: x}":           "lamina.yaml:1: routr: there is no such command: did you mean router?",
		"router:\n  drain: 5":        "lamina.yaml:2: router.drain: ",
		"router: {http: [a, b]}":     "lamina.yaml:1: router.http: want one value, got a list",
		"router: {http: }":           "lamina.yaml:1: router.http: want a value",
		"router: {http: a, http: b}": "lamina.yaml:1: router.http: is given twice",
		"router: {}\nrouter: {}":     "lamina.yaml:2: router: is given twice",
		"router: {host: [[a]]}":      "lamina.yaml:1: router.host: want a list of plain values",
		"a: &x 1\nb: *x":             "lamina.yaml:2: b: anchors and aliases are not supported",
		"- a":                        "lamina.yaml:1: want keys and values",
		"queue: 1\n---\nqueue: 2":    "lamina.yaml: want one document",
		"router: {http: 'x":          "lamina.yaml: found unexpected end of stream",
		"help: true":                 "lamina.yaml:1: help: there is no such flag",
		"config: other.yaml":         "lamina.yaml:1: config: there is no such flag",
		"a: {b: {c: {d: {e: {f: {g: {h: {i: {j: {k: 1}}}}}}}}}}": "is nested too deeply",
	} {
		if _, _, _, err := parse(t, text, "router"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	// The same key is a number for one command and a text for another one.
	if _, _, _, err := parse(t, "requests: many", "keys", "list"); err != nil {
		t.Errorf("a text for keys list: %v", err)
	}
	if _, _, _, err := parse(t, "requests: many", "keys", "create"); err == nil ||
		!strings.Contains(err.Error(), "lamina.yaml:1: requests: ") {
		t.Errorf("a text for keys create: %v", err)
	}
}

// What is written reads back as the same settings, and shows no secret.
func TestWrite_ReadsBack(t *testing.T) {
	c, parsed, f, err := parse(t, file, "router", "--nats-token=canary", "--queue=3")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := config.Write(&out, []string{"router"}, config.Effective(parsed, f)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "canary") {
		t.Errorf("a secret is shown:\n%s", out.String())
	}
	c2, _, _, err := parse(t, out.String(), "router")
	if err != nil {
		t.Fatalf("read back: %v\n%s", err, out.String())
	}
	c.Router.Secret = ""
	if !reflect.DeepEqual(c.Router, c2.Router) {
		t.Errorf("%+v became %+v by\n%s", c.Router, c2.Router, out.String())
	}
}

func TestFileOf_FindsTheName(t *testing.T) {
	for want, args := range map[string][]string{
		"": {"router"}, "a": {"--config", "a", "router"}, "b": {"router", "--config=b"},
	} {
		if got := config.FileOf(args); got != want {
			t.Errorf("%q names %q, want %q", args, got, want)
		}
	}
	if got := config.FileOf([]string{"router", "--", "--config=x"}); got != "" {
		t.Errorf("an argument behind -- names %q", got)
	}
	t.Setenv("LAMINA_CONFIG", "env.yaml")
	if got := config.FileOf([]string{"router"}); got != "env.yaml" {
		t.Errorf("the environment names %q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(file))
	f.Add([]byte("a: [1, {b: c}]\n? [x]\n: y"))
	f.Add([]byte("a: &x [*x]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := config.Parse("fuzz.yaml", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "fuzz.yaml") {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		var c cli
		k, err := kong.New(&c, config.Environment())
		if err != nil {
			t.Fatal(err)
		}
		_ = file.Validate(k.Model)
	})
}
