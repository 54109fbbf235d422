package integration_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// deep returns the folder of a model with at least so many layers: the bundled one, or else a model that has the
// layers of the bundled one again and again. Its texts make no sense, and are as exact as any.
func deep(t *testing.T, layers int) string {
	t.Helper()
	from := bundled(t)
	var config map[string]any
	readInto(t, filepath.Join(from, "config.json"), &config)
	have := int(config["num_hidden_layers"].(float64))
	if layers <= have {
		return from
	}
	to := t.TempDir()
	config["num_hidden_layers"] = layers
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(to, "config.json"), text)
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		text, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(to, name), text)
	}
	write(t, filepath.Join(to, "model.safetensors"),
		repeatLayers(t, filepath.Join(from, "model.safetensors"), have, layers))
	return to
}

func readInto(t *testing.T, path string, v any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

var layerName = regexp.MustCompile(`^model\.layers\.(\d+)\.`)

// repeatLayers returns a safetensors file in which layer i is layer i modulo have of another one.
func repeatLayers(t *testing.T, path string, have, layers int) []byte {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	start := 8 + int(binary.LittleEndian.Uint64(file))
	var header map[string]json.RawMessage
	if err := json.Unmarshal(file[8:start], &header); err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	type tensor struct {
		Type    string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	delete(header, "__metadata__")
	tensors, names := map[string]tensor{}, []string{}
	for name, text := range header {
		var v tensor
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatalf("read %s: %s: %v", path, name, err)
		}
		tensors[name], names = v, append(names, name)
		m := layerName.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		layer, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		for i := layer + have; i < layers; i += have {
			again := fmt.Sprintf("model.layers.%d.%s", i, strings.TrimPrefix(name, m[0]))
			tensors[again], names = v, append(names, again)
		}
	}
	slices.Sort(names)
	var data []byte
	for _, name := range names {
		v := tensors[name]
		from, to := start+v.Offsets[0], start+v.Offsets[1]
		v.Offsets = [2]int{len(data), len(data) + to - from}
		data = append(data, file[from:to]...)
		tensors[name] = v
	}
	text, err := json.Marshal(tensors)
	if err != nil {
		t.Fatal(err)
	}
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	return slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text, data)
}
