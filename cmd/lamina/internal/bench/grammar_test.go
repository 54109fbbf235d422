package bench

import "testing"

func TestBenchGrammar_WalksTheSchemas(t *testing.T) {
	model := sharedPath(t, "vectors/tokenizer/qwen3-hf")
	cases := sharedPath(t, "vectors/grammar/bench-schemas.json")
	got := verbJSON[grammarBench](t, "", "bench", "grammar", "-m", model, "-f", cases, "--repeat", "2", "--format",
		"json")
	if got.Vocabulary != 151669 || len(got.Schemas) != 4 {
		t.Fatalf("%+v", got)
	}
	for _, r := range got.Schemas {
		if r.Tokens == 0 || r.Compile <= 0 || r.Mask <= 0 || r.MaskP99 < r.Mask {
			t.Errorf("%+v", r)
		}
	}
}
