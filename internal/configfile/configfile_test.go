package configfile_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lamina-mesh/lamina/internal/configfile"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// words is a list that may be one word.
type words []string

func (w *words) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: want a word", n.Line)
	}
	*w = append(*w, n.Value)
	return nil
}

// file has a setting of each kind.
type file struct {
	Rounds  int               `yaml:"rounds" json:"rounds"`
	Rate    *float64          `yaml:"rate" json:"rate"`
	On      bool              `yaml:"on" json:"on"`
	Timeout time.Duration     `yaml:"timeout" json:"-"`
	Ports   []uint16          `yaml:"ports" json:"ports"`
	Words   words             `yaml:"words" json:"-"`
	Servers map[string]server `yaml:"servers" json:"servers"`
	Pair    [2]float64        `yaml:"-" json:"pair"`
}

type server struct {
	URL  string            `yaml:"url" json:"url"`
	Env  map[string]string `yaml:"env" json:"env"`
	Args []string          `yaml:"args" json:"args"`
}

func TestYAML_ErrorsNameTheSettingAndTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"rounds: 1\nservers: [a]\n":         "servers: line 2: want a mapping (name: value), got a list",
		"rounds: many":                      `rounds: line 1: want a whole number in range, got "many"`,
		"rounds: 99999999999999999999":      `rounds: line 1: want a whole number in range, got "99999999999999999999"`,
		"rate: [1]":                         "rate: line 1: want a number in range, got a list",
		"on: 1":                             `on: line 1: want true or false, got "1"`,
		"\ntimeout: soon":                   `timeout: line 2: want a time such as 10s, got "soon"`,
		"ports:\n- 1\n- 70000":              `ports[1]: line 3: want a whole number in range, got "70000"`,
		"ports: 1":                          `ports: line 1: want a list, got "1"`,
		"words: []":                         "words: line 1: want a word",
		"servers:\n  a:\n    url: {x: 1}":   "servers.a.url: line 3: want a string, got a mapping",
		"servers: {a: {env: {B: [1]}}}":     "servers.a.env.B: line 1: want a string, got a list",
		"servers: {a: {args: [x, [y]]}}":    "servers.a.args[1]: line 1: want a string, got a list",
		"servers: {a: {uri: x}}":            "servers.a.uri: line 1: there is no such setting: want one of args, env, url",
		"- a":                               "line 1: want a mapping (name: value), got a list",
		"rounds: 1\n---\nrounds: 2":         "want one document",
		"rounds: 1\nrounds: 2":              `line 2: mapping key "rounds" already defined at line 1`,
		"rounds: [1":                        "line 1: did not find expected ',' or ']'",
		"servers: {a: &x {args: 1}, b: *x}": `servers.a.args: line 1: want a list, got "1"`,
	} {
		err := configfile.YAML([]byte(text), &file{})
		if err == nil || err.Error() != want || fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q:\ngot  %v\nwant %s", text, err, want)
		}
	}
}

func TestYAML_ReadsAndKeepsWhatIsLeftOut(t *testing.T) {
	f := file{Rounds: 3, On: true}
	if err := configfile.YAML([]byte("rounds: 4\ntimeout: 2s\nwords: a\nservers: {b: {args: [c]}}"), &f); err != nil {
		t.Fatal(err)
	}
	if f.Rounds != 4 || !f.On || f.Timeout != 2*time.Second || f.Words[0] != "a" || f.Servers["b"].Args[0] != "c" {
		t.Errorf("got %+v", f)
	}
	for _, text := range []string{"", "# nothing"} {
		if err := configfile.YAML([]byte(text), &f); err != nil || f.Rounds != 4 {
			t.Errorf("%q: %+v, %v", text, f, err)
		}
	}
}

func TestJSON_ErrorsNameTheSettingAndTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"{\n\"rounds\": \"x\"}":                 "rounds: line 2: want a whole number in range, got a string",
		`{"rounds": 1.5}`:                       "rounds: line 1: want a whole number in range, got the number 1.5",
		`{"rate": []}`:                          "rate: line 1: want a number in range, got a list",
		`{"on": {}}`:                            "on: line 1: want true or false, got an object",
		`{"pair": true}`:                        "pair: line 1: want a list, got true or false",
		"{\"servers\":\n{\"a\": {\"url\": 1}}}": "servers.url: line 2: want a string, got a number",
		"{\"rounds\": 1,\n\"round\": 2}":        "round: line 2: there is no such setting",
		`[]`:                                    "line 1: want an object, got a list",
		"{}\n{}":                                "line 2: want one value and nothing after it",
		"{\n\"rounds\": }":                      "line 2: invalid character '}' looking for beginning of value",
		"{\n":                                   "line 2: the file ends too early",
		"":                                      "line 1: the file ends too early",
	} {
		err := configfile.JSON([]byte(text), &file{})
		if err == nil || err.Error() != want || fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q:\ngot  %v\nwant %s", text, err, want)
		}
	}
	f := file{On: true}
	if err := configfile.JSON([]byte(`{"rounds": 2}`), &f); err != nil || f.Rounds != 2 || !f.On {
		t.Errorf("%+v, %v", f, err)
	}
}

// FuzzRead compares with the decoders, which accept the same texts and whose errors name types of Go.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{"", "{}", "rounds: x", "ports: [1, [2]]", `{"pair": [1, "x"]}`, "a: &a {b: *a}",
		"servers: {a: {args: [*x]}}", "words: [a]", "<<: {rounds: x}\nrate: y", "? [a]\n: b",
		"servers: {? {a: b} : {url: []}}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		same := func(kind string, got, want error) {
			if (got == nil) != (want == nil) {
				t.Errorf("%s: got %v, a decoder says %v", kind, got, want)
			}
			if got != nil && fault.CodeOf(got) != fault.Invalid {
				t.Errorf("%s: %v is not about the file", kind, got)
			}
		}
		d := yaml.NewDecoder(bytes.NewReader(text))
		d.KnownFields(true)
		want := d.Decode(&file{})
		if errors.Is(want, io.EOF) {
			want = nil
		} else if want == nil && !errors.Is(d.Decode(new(yaml.Node)), io.EOF) {
			want = errors.New("more")
		}
		got := configfile.YAML(text, &file{})
		same("YAML", got, want)
		if got != nil && strings.Contains(got.Error(), "configfile_test.") && !bytes.Contains(text, []byte("*")) &&
			!bytes.Contains(text, []byte("<<")) {
			t.Errorf("%v names a type of Go", got)
		}
		j := json.NewDecoder(bytes.NewReader(text))
		j.DisallowUnknownFields()
		want = j.Decode(&file{})
		if want == nil {
			if _, err := j.Token(); !errors.Is(err, io.EOF) {
				want = errors.New("more")
			}
		}
		got = configfile.JSON(text, &file{})
		same("JSON", got, want)
		if got != nil && strings.Contains(got.Error(), "Go ") && !bytes.Contains(text, []byte("Go ")) {
			t.Errorf("%v names a type of Go", got)
		}
	})
}
