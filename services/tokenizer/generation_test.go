package tokenizer_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

func settings(t testing.TB, text string) string {
	t.Helper()
	dir := t.TempDir()
	if text != "" {
		if err := os.WriteFile(filepath.Join(dir, "generation_config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoadDefaults_ReadsGenerationConfig(t *testing.T) {
	for text, want := range map[string]*tokenizerv1.GenerationDefaults{
		``:   nil,
		`{}`: nil,
		`{"eos_token_id":[1,2],"transformers_version":"4"}`: nil,
		`{"do_sample":true,"temperature":0.7,"top_k":20,"top_p":0.8,"repetition_penalty":1.1,"min_p":null}`: {
			Temperature: proto.Float32(0.7), TopK: proto.Uint32(20), TopP: proto.Float32(0.8),
			RepetitionPenalty: proto.Float32(1.1)},
		`{"do_sample":false,"temperature":0.7}`: {Temperature: proto.Float32(0)},
		`{"do_sample":null,"top_k":-1}`:         nil,
		`{"max_new_tokens":512,"no_repeat_ngram_size":3,"typical_p":0.9,"epsilon_cutoff":0.001,"eta_cutoff":0.002,"min_new_tokens":2}`: {
			MaxTokens: proto.Uint32(512), NoRepeatNgram: proto.Uint32(3), TypicalP: proto.Float32(0.9),
			EpsilonCutoff: proto.Float32(0.001), EtaCutoff: proto.Float32(0.002), MinTokens: proto.Uint32(2)},
	} {
		got, err := tokenizer.LoadDefaults(settings(t, text))
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestLoadDefaults_NamesTheFieldThatIsWrong(t *testing.T) {
	for text, field := range map[string]string{
		`{"temperature":"warm"}`: "temperature", `{"top_p":1.5}`: "top_p", `{"top_k":-2}`: "top_k",
		`{"do_sample":3}`:          "do_sample",
		`{"repetition_penalty":0}`: "repetition_penalty", `{"max_new_tokens":1e30}`: "max_new_tokens",
		`[]`: "generation_config.json",
	} {
		_, err := tokenizer.LoadDefaults(settings(t, text))
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzLoadDefaults(f *testing.F) {
	for _, seed := range []string{`{"temperature":0.7,"do_sample":true}`, `{"top_k":4294967296}`, `{"min_p":-1}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := tokenizer.LoadDefaults(settings(t, text))
		if err == nil && got != nil && (got.GetTemperature() < 0 || got.GetTopP() > 1) {
			t.Errorf("%s: %v", text, got)
		}
	})
}
