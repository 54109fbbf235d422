package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// LoadDefaults reads the generation settings of a model's files: generation_config.json of a
// Hugging Face directory, or the general.sampling keys of a GGUF file. The result is nil if the
// files contain none. The error is a fault.Error that names the file and the field. Begin-of-text
// and end-of-text ids belong to the vocabulary.
func LoadDefaults(path string) (*tokenizerv1.GenerationDefaults, error) {
	kind, file, err := kindOf(path)
	if err != nil {
		return nil, loadFault(path, err)
	}
	var out *tokenizerv1.GenerationDefaults
	switch kind {
	case kindFolder:
		out, err = defaultsFS(os.DirFS(path))
	case kindGGUF:
		out, err = defaultsGGUF(file)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "load the generation settings of %s", path)
	}
	return out, nil
}

// maxDefault bounds the integers of a configuration.
const maxDefault = 1 << 24

func defaultsFS(fsys fs.FS) (*tokenizerv1.GenerationDefaults, error) {
	const file = "generation_config.json"
	fields, found, err := readConfig(fsys, file)
	if err != nil || !found {
		return nil, err
	}
	return generationDefaults(file, fields)
}

// generationDefaults reads the settings of a generation_config.json. do_sample false means greedy
// sampling, whatever the temperature is.
func generationDefaults(file string, fields map[string]json.RawMessage) (*tokenizerv1.GenerationDefaults, error) {
	out := &tokenizerv1.GenerationDefaults{}
	for _, f := range []struct {
		name string
		max  float64
		to   **float32
	}{
		{"temperature", 100, &out.Temperature}, {"top_p", 1, &out.TopP}, {"min_p", 1, &out.MinP},
		{"typical_p", 1, &out.TypicalP},
		{"repetition_penalty", 100, &out.RepetitionPenalty}, {"epsilon_cutoff", 1, &out.EpsilonCutoff},
		{"eta_cutoff", 1, &out.EtaCutoff},
	} {
		v, err := number(file, f.name, fields, f.max)
		if err != nil {
			return nil, err
		}
		if v != nil {
			*f.to = proto.Float32(float32(*v))
		}
	}
	if out.RepetitionPenalty != nil && out.GetRepetitionPenalty() == 0 {
		return nil, fmt.Errorf("read %s: repetition_penalty: want a number above 0, got 0", file)
	}
	for _, f := range []struct {
		name string
		to   **uint32
	}{
		{"top_k", &out.TopK}, {"no_repeat_ngram_size", &out.NoRepeatNgram},
		{"max_new_tokens", &out.MaxTokens}, {"min_new_tokens", &out.MinTokens},
	} {
		v, err := number(file, f.name, fields, maxDefault)
		if err != nil {
			return nil, err
		}
		if v != nil && *v == math.Trunc(*v) {
			*f.to = proto.Uint32(uint32(*v))
		}
	}
	if raw := fields["do_sample"]; len(raw) > 0 {
		var sample *bool
		if json.Unmarshal(raw, &sample) != nil {
			return nil, fmt.Errorf("read %s: do_sample: want true or false", file)
		}
		if sample != nil && !*sample {
			out.Temperature = proto.Float32(0)
		}
	}
	if proto.Size(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// number reads an optional number from 0 to most. null counts as absent, and so does -1, which some
// files write for "off".
func number(file, name string, fields map[string]json.RawMessage, most float64) (*float64, error) {
	raw := fields[name]
	if len(raw) == 0 {
		return nil, nil
	}
	var v *float64
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, fmt.Errorf("read %s: %s: want a number", file, name)
	}
	if v == nil || *v == -1 {
		return nil, nil
	}
	if !(*v >= 0 && *v <= most) {
		return nil, fmt.Errorf("read %s: %s: want a number from 0 to %v, got %v", file, name, most, *v)
	}
	return v, nil
}

// defaultsGGUF reads the general.sampling keys that llama.cpp's converter writes.
func defaultsGGUF(path string) (*tokenizerv1.GenerationDefaults, error) {
	file, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	meta := file.Meta()
	fields := map[string]json.RawMessage{}
	for key, name := range map[string]string{
		"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
		"penalty_repeat": "repetition_penalty",
	} {
		v, ok := meta.Float("general.sampling." + key)
		if n, is := meta.Uint("general.sampling." + key); is {
			v, ok = float64(n), true
		}
		if !ok {
			continue
		}
		text, err := json.Marshal(float32(v))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read general.sampling.%s", key), err)
		}
		fields[name] = text
	}
	return generationDefaults("general.sampling", fields)
}
