package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/corpus"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/schedule"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// vocabEncoder encodes texts with a vocabulary.
type vocabEncoder struct{ v *vocab.Vocab }

func (e vocabEncoder) Encode(_ context.Context, texts []string) ([][]uint32, error) {
	var out [][]uint32
	for _, text := range texts {
		ids, err := e.v.Encode(text, vocab.Options{})
		if err != nil {
			return nil, err
		}
		var u []uint32
		for _, id := range ids {
			u = append(u, uint32(id))
		}
		out = append(out, u)
	}
	return out, nil
}

func (e vocabEncoder) EncodeStream(context.Context, io.Reader, func([]uint32) error) error {
	return fmt.Errorf("no long texts here")
}

// tokenData builds token data of some documents of different lengths with a small vocabulary.
func tokenData(t *testing.T, documents int, seed uint64) string {
	t.Helper()
	words := strings.Fields("one two three four five six seven eight nine ten eleven twelve")
	lines := func(yield func(string) bool) { yield(strings.Repeat(strings.Join(words, " ")+"\n", 5)) }
	v, err := vocab.TrainBPE(t.Context(), lines, 280, vocab.TrainOptions{Special: []string{"<|end|>"}, BOS: "<|end|>",
		EOS: "<|end|>"})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	r := rand.New(rand.NewPCG(seed, 1))
	for range documents {
		for range 1 + r.IntN(30) {
			text.WriteString(words[r.IntN(len(words))] + " ")
		}
		text.WriteString("\n")
	}
	in, out := filepath.Join(t.TempDir(), "text.txt"), t.TempDir()
	if err := os.WriteFile(in, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	inputs, err := corpus.FindInputs([]string{in})
	if err != nil {
		t.Fatal(err)
	}
	end, _ := v.EOS()
	_, err = corpus.Build(t.Context(), corpus.BuildConfig{Dir: out, Inputs: inputs, Encoder: vocabEncoder{v},
		Workers: 1,
		Options: corpus.Options{Lines: true, ShardTokens: 500}, Vocabulary: corpus.Vocabulary{Family: v.Family(),
			Size: v.Size(), End: uint32(end), Begin: uint32(end), SHA256: corpus.DigestVocabulary(v.Size(), v.Piece)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.WriteHF(out); err != nil {
		t.Fatal(err)
	}
	return out
}

// onTokens returns the part of a manifest that reads token data.
func onTokens(data map[string]any, change map[string]any) map[string]any {
	out := map[string]any{"data": data, "vocabulary": map[string]any{}, "steps": 4}
	for k, v := range change {
		out[k] = v
	}
	return out
}

// ledger reads ledger.jsonl of a run.
type ledger []struct {
	Step  uint64
	Slots []struct {
		Slot, Replica int
		Samples       []string
	}
}

func readLedger(t *testing.T, out string) ledger {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(out, "ledger.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var l ledger
	if err := json.Unmarshal([]byte("["+strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ",")+"]"), &l); err != nil {
		t.Fatal(err)
	}
	return l
}

// once checks a ledger: every step and slot is there once, and every sample is read as often as in the epochs that
// the run covers. It returns the samples in the order of (step, slot).
func (l ledger) once(t *testing.T, steps, slots, sequences int) []string {
	t.Helper()
	if len(l) != steps {
		t.Errorf("the ledger has %d steps, want %d", len(l), steps)
	}
	seen := map[string]uint64{}
	var order []string
	for i, line := range l {
		if line.Step != uint64(i+1) || len(line.Slots) != slots {
			t.Fatalf("line %d of the ledger is step %d with %d slots", i+1, line.Step, len(line.Slots))
		}
		for k, s := range line.Slots {
			if s.Slot != k || s.Replica < 0 || len(s.Samples) != sequences {
				t.Fatalf("step %d has slot %+v at %d", line.Step, s, k)
			}
			for _, name := range s.Samples {
				if before := seen[name]; before > 0 {
					t.Errorf("sample %s is read in steps %d and %d", name, before, line.Step)
				}
				seen[name] = line.Step
				order = append(order, name)
			}
		}
	}
	return order
}

// TestTrain_PackedDocumentsGiveTheSameWeightsOnAnyLayout isolates documents over layouts and schedules, also where
// a stage has spans in the middle of the chain.
func TestTrain_PackedDocumentsGiveTheSameWeightsOnAnyLayout(t *testing.T) {
	dir := tokenData(t, 150, 1)
	weights := map[string]string{}
	for _, data := range []map[string]any{
		{"tokens": []any{map[string]any{"path": dir}}, "packing": "best-fit", "isolate": true, "validation_fraction": 0.1},
		{"tokens": []any{map[string]any{"path": dir}}, "packing": "best-fit", "validation_fraction": 0.1},
		{"tokens": []any{map[string]any{"path": dir}}, "isolate": true, "validation": []string{dir}},
	} {
		f := newTrainFleet(t, 4)
		var calm *trainerv1.Run
		var calmOut string
		for i, l := range []struct {
			stages, replicas uint32
			schedule         string
		}{{1, 1, "1f1b"}, {3, 1, "1f1b"}, {2, 2, "interleaved-1f1b"}, {4, 1, "zero-bubble"}, {1, 4, "gpipe"}} {
			out := t.TempDir()
			raw := manifest(t, fmt.Sprintf("packed-%d", i), onTokens(data, map[string]any{"schedule": l.schedule}))
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l.stages, Replicas: l.replicas,
				Out: out}, nil)
			if calm == nil {
				calm, calmOut = got, out
			}
			same(t, fmt.Sprintf("%v over %+v", data, l), out, calmOut, got, calm)
			if got.GetValidationLoss() != calm.GetValidationLoss() || got.GetValidationBitsPerByte() <= 0 ||
				!strings.Contains(got.GetData(), "padding") {
				t.Errorf("%v: validation loss %v, %v bits per byte; want %v; %q", l, got.GetValidationLoss(),
					got.GetValidationBitsPerByte(), calm.GetValidationLoss(), got.GetData())
			}
			readLedger(t, out).once(t, 4, 4, 2)
		}
		if other := weights[calm.GetWeightsDigest()]; other != "" {
			t.Errorf("%v and %s give the same weights", data, other)
		}
		weights[calm.GetWeightsDigest()] = fmt.Sprint(data)
	}
}

// TestTrain_EverySampleCountsOnce is promise T5: under lost shards, stops and resumes on other layouts the ledger
// has every sample of every epoch exactly once, in the order of the undisturbed run.
func TestTrain_EverySampleCountsOnce(t *testing.T) {
	defer leak.Check(t)
	dir := tokenData(t, 120, 2)
	t.Run("run", func(t *testing.T) {
		d, err := corpus.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		p, err := corpus.NewPacking(d, 0, d.Documents(), 16, corpus.PackConcat)
		if err != nil {
			t.Fatal(err)
		}
		samples := p.Samples()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		steps := int(2*samples) / 8 // two epochs, up to a part of a step
		raw := scheduled(t, "ledger", map[string]any{"schedule": schedule.NameOneFOneB}, onTokens(
			map[string]any{"tokens": []any{map[string]any{"path": dir}}}, map[string]any{"steps": steps,
				"checkpoint_every": 5}))
		calmOut, out := t.TempDir(), t.TempDir()
		f := newTrainFleet(t, 6)
		calm := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: calmOut}, nil)
		victims := []string{"shard-1", "shard-3", "shard-0"}
		var deaths, stops int
		var got *trainerv1.Run
		for i, l := range [][2]uint32{{2, 2}, {1, 3}, {2, 1}} {
			stopped := make(chan error, 1)
			asked := false
			got = f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l[0], Replicas: l[1], Out: out,
				Resume: i > 0}, func(r *trainerv1.Run) {
				if r.GetState() != trainerv1.RunState_RUN_STATE_RUNNING {
					return
				}
				if deaths == i && r.GetStep() >= uint64((3*i+1)*steps/9) {
					f.kill[victims[deaths]]()
					deaths++
				}
				if i < 2 && !asked && r.GetStep() >= uint64((3*i+3)*steps/9) {
					asked = true
					go func() {
						_, err := f.client.StopRun(f.ctx, &trainerv1.StopRunRequest{Run: "ledger"})
						stopped <- err
					}()
				}
				if asked {
					linger(f.ctx) // until it stops
				}
			})
			if asked {
				stops++
				if err := <-stopped; err != nil {
					t.Fatal(err)
				}
			}
		}
		if deaths != 3 || stops != 2 {
			t.Errorf("%d shards were killed and the run was stopped %d times", deaths, stops)
		}
		same(t, "a run with lost shards and stops", out, calmOut, got, calm)
		order := readLedger(t, out).once(t, steps, 4, 2)
		if want := readLedger(t, calmOut).once(t, steps, 4, 2); !slices.Equal(order, want) {
			t.Error("the ledger differs from that of the undisturbed run")
		}
		epochs := map[string]int64{}
		for _, name := range order {
			epochs[strings.Split(name, "/")[1]]++
		}
		if epochs["0"] != samples || epochs["1"] != int64(8*steps)-samples {
			t.Errorf("epochs have %v samples of %d", epochs, samples)
		}
	})
}

// TestTrain_LossOfPackedDataIsThatOfOneBatch compares slots that have different numbers of targets with one slot.
func TestTrain_LossOfPackedDataIsThatOfOneBatch(t *testing.T) {
	dir := tokenData(t, 60, 3)
	data := map[string]any{"tokens": []any{map[string]any{"path": dir}}, "packing": "best-fit", "isolate": true}
	var first []float64
	for _, l := range [][2]int{{1, 8}, {8, 1}, {4, 2}} {
		raw := manifest(t, "accumulated", onTokens(data, map[string]any{"slots": l[0], "slot_sequences": l[1],
			"sequence_len": 64, "steps": 3, "learning_rate": map[string]any{"max": 0.001}}))
		out := t.TempDir()
		train(t, raw, 1, 1, out, false)
		losses := curve(t, out)
		for i, loss := range losses {
			if first != nil && !(math.Abs(loss-first[i]) < 1e-6) {
				t.Errorf("%d slots of %d: step %d has loss %v, want %v", l[0], l[1], i+1, loss, first[i])
			}
		}
		first = losses
	}
}

func TestTrain_TokenDataThatDoesNotFitIsRefused(t *testing.T) {
	dir, other := tokenData(t, 60, 4), tokenData(t, 60, 5)
	text, err := os.ReadFile(filepath.Join(other, corpus.IndexName))
	if err != nil {
		t.Fatal(err)
	}
	x, err := corpus.ParseIndex("x", text)
	if err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir() // has another vocabulary
	_, err = corpus.Build(t.Context(), corpus.BuildConfig{Dir: foreign, Inputs: []corpus.Input{{Path: write(t, "one")}},
		Encoder: bytesEncoder{}, Workers: 1, Options: corpus.Options{ShardTokens: 10},
		Vocabulary: corpus.Vocabulary{Size: 300, End: 256, Begin: 256, SHA256: strings.Repeat("ab", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	folder := func(path string, more ...any) map[string]any {
		out := map[string]any{"path": path}
		for i := 0; i < len(more); i += 2 {
			out[more[i].(string)] = more[i+1]
		}
		return out
	}
	damaged := filepath.Join(other, x.Shards[0].File)
	if err := os.Truncate(damaged, 200); err != nil {
		t.Fatal(err)
	}
	f := newTrainFleet(t, 1)
	for want, data := range map[string]map[string]any{
		"data.tokens[1].path: read " + damaged: {"tokens": []any{folder(dir), folder(other)}},
		"data.tokens[1].path":                  {"tokens": []any{folder(dir), folder(foreign)}},
		"data.tokens[0].path":                  {"tokens": []any{folder(foreign)}},
		"data.validation[0]":                   {"tokens": []any{folder(dir)}, "validation": []string{t.TempDir()}},
		"data.tokens[0].epochs":                {"tokens": []any{folder(dir, "epochs", 0.5)}},
		"data.tokens[1].weight":                {"tokens": []any{folder(dir, "weight", 1), folder(dir)}},
	} {
		raw := manifest(t, "refused", onTokens(data, map[string]any{"steps": 1000}))
		got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Out: t.TempDir()}, nil)
		if got.GetState() != trainerv1.RunState_RUN_STATE_FAILED || !strings.Contains(got.GetError(), want) {
			t.Errorf("%v: %v %q, want %s", data, got.GetState(), got.GetError(), want)
		}
	}
}

// bytesEncoder has one id for each byte.
type bytesEncoder struct{ vocabEncoder }

func (bytesEncoder) Encode(_ context.Context, texts []string) ([][]uint32, error) {
	var out [][]uint32
	for _, text := range texts {
		var ids []uint32
		for _, b := range []byte(text) {
			ids = append(ids, uint32(b))
		}
		out = append(out, ids)
	}
	return out, nil
}

// write writes a text to a new file.
func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "text.txt")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTrain_SampleTextsAreTheSameOnAnyLayout generates texts with a temperature over layouts and schedules.
func TestTrain_SampleTextsAreTheSameOnAnyLayout(t *testing.T) {
	dir := tokenData(t, 60, 6)
	for _, data := range []map[string]any{
		{"tokens": []any{map[string]any{"path": dir}}, "isolate": true},
		{"tokens": []any{map[string]any{"path": dir}}},
	} {
		f := newTrainFleet(t, 4)
		var first string
		for i, l := range [][2]uint32{{1, 1}, {3, 1}, {2, 2}} {
			out := t.TempDir()
			raw := manifest(t, fmt.Sprintf("samples-%d", i), onTokens(data, map[string]any{"steps": 6,
				"schedule": []string{"1f1b", "zero-bubble", "interleaved-1f1b"}[i],
				"samples": map[string]any{"every": 3, "tokens": 20, "temperature": 0.8,
					"prompts": []string{"one two", "", "three four five six seven eight nine ten"}}}))
			got := f.watch(&trainerv1.StartRunRequest{ManifestJson: raw, Stages: l[0], Replicas: l[1], Out: out}, nil)
			if got.GetState() != trainerv1.RunState_RUN_STATE_DONE || len(got.GetSamples()) != 3 ||
				got.GetSamples()[0].GetStep() != 6 || got.GetSamples()[2].GetText() == "" {
				t.Fatalf("%v (%s) with samples %v", got.GetState(), got.GetError(), got.GetSamples())
			}
			text, err := os.ReadFile(filepath.Join(out, "samples.jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(text), "\n"); n != 6 {
				t.Errorf("samples.jsonl has %d lines, want 6", n)
			}
			if first == "" {
				first = string(text)
			}
			if string(text) != first {
				t.Errorf("%v over %v: texts are\n%s\nover one stage they are\n%s", data, l, text, first)
			}
		}
	}
}

// TestTrain_GreedySamplesAreThoseOfTheServedModel serves the trained model and compares its text with the last
// sample.
func TestTrain_GreedySamplesAreThoseOfTheServedModel(t *testing.T) {
	run := train(t, manifest(t, "greedy", map[string]any{"steps": 30, "samples": map[string]any{"every": 30,
		"prompts": []string{"one t"}, "tokens": 9}}), 2, 1, t.TempDir(), false)
	router := mesh(t, app.MeshConfig{Model: run.GetModelPath(), Stages: 2})
	if got, want := generateText(t, router, "one t", 9), run.GetSamples()[0].GetText(); got != want || want == "" {
		t.Errorf("the model generates %q, the sample was %q", got, want)
	}
}
