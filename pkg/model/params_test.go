package model_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/ref"
	"github.com/lamina-mesh/lamina/pkg/model"
)

// TestSpec_HoldersAreTheStagesThatHaveTheParameter compares what a Spec says of parameters
// with the parameters of the stages, for every architecture.
func TestSpec_HoldersAreTheStagesThatHaveTheParameter(t *testing.T) {
	set := kernel.Set[float32](ref.New[float32]())
	for _, name := range tiny {
		files := open(t, shared(t, "models/tiny", name))
		ranges := model.Split(len(files.Spec.Layers), 3)
		want := map[string][]int{}
		ends := 0
		for i, r := range ranges {
			s, err := model.Load(files, r, set, model.LoadOptions{Dense: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range s.Params().Tensors {
				want[p.Owner()] = append(want[p.Owner()], i)
			}
			if end, ok := s.TiedEnd(); ok {
				ends++
				if p, ok := s.Params().Get(end); !ok || p.Owner() != files.Spec.Embedding.Tokens.Param+".weight" {
					t.Errorf("%s: stage %d has %q for an end of the tied weight", name, i, end)
				}
			}
			for _, p := range s.Stepped() {
				if p.Tied() && s.First() {
					t.Errorf("%s: stage %d steps both %s and its owner", name, i, p.Name)
				}
			}
		}
		for param, stages := range want {
			if got := files.Spec.Holders(param, ranges); !slices.Equal(got, stages) {
				t.Errorf("%s: %s is held by stages %v, want %v", name, param, got, stages)
			}
		}
		if files.Spec.Head.Tied != (ends == 2) {
			t.Errorf("%s: tied %v, with %d ends", name, files.Spec.Head.Tied, ends)
		}
		for _, param := range []string{"", "model.layers.99.mlp.up_proj.weight", "model.layers.0.mlp.up_proj",
			".weight"} {
			if got := files.Spec.Holders(param, ranges); got != nil {
				t.Errorf("%s: %q is held by stages %v, want none", name, param, got)
			}
		}
	}
}

func TestSpec_ParametersAreThoseOfAStage(t *testing.T) {
	for _, name := range tiny {
		files := open(t, shared(t, "models/tiny", name))
		s, err := model.Load(files, model.Range{Hi: len(files.Spec.Layers)}, sets(t)["ref"],
			model.LoadOptions{Dense: true})
		if err != nil {
			t.Fatal(err)
		}
		got, err := files.Spec.Parameters()
		if err != nil {
			t.Fatal(err)
		}
		want := s.Params().Tensors
		if len(got) != len(want) {
			t.Fatalf("%s: %d parameters, want %d", name, len(got), len(want))
		}
		for i, p := range got {
			if p.Name != want[i].Name || !slices.Equal(p.Shape, want[i].Shape) || p.TiedTo != want[i].TiedTo ||
				p.Data != nil {
				t.Errorf("%s: parameter %d is %+v, want %s %v", name, i, p, want[i].Name, want[i].Shape)
			}
			layer := strings.Contains(p.Name, ".layers.") || strings.Contains(p.Name, "h.")
			if hidden := files.Spec.Hidden(p.Name); hidden != layer {
				t.Errorf("%s: %s is hidden: %v", name, p.Name, hidden)
			}
		}
	}
}
