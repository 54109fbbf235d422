package plan_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

func document() *plan.Document {
	return &plan.Document{
		Fence: 7, Version: 3, Reason: "repair: b gone", MoveLayers: 2, MoveBytes: 99,
		Plan: plan.Plan{
			Pipelines: []plan.Pipeline{{
				Model: "m", Digest: "sha256:m", Class: "cpu/7", KVPositions: 2048,
				Stages: []plan.Stage{{Host: "a", Hi: 2, Memory: 5, MS: 0.5, HopMS: 0.1}, {Host: "b", Lo: 2, Hi: 4}},
			}},
			LeftOut: []plan.LeftOut{{ID: "c", Reason: "it would slow the chain"}},
		},
	}
}

func TestDocument_ComesBackAsItWas(t *testing.T) {
	text, err := document().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := plan.ParseDocument(text)
	if err != nil || !reflect.DeepEqual(got, document()) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestDocument_TooLong_LeavesOutTheHostsThatAreLeftOut(t *testing.T) {
	d := document()
	for range 10_000 {
		d.Plan.LeftOut = append(d.Plan.LeftOut, plan.LeftOut{ID: "host", Reason: strings.Repeat("long ", 20)})
	}
	text, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := plan.ParseDocument(text)
	if err != nil || len(got.Plan.LeftOut) != 0 || len(got.Plan.Pipelines) != 1 {
		t.Errorf("got %d pipelines, %d left out, %v", len(got.Plan.Pipelines), len(got.Plan.LeftOut), err)
	}
}

func TestParseDocument_NamesWhatIsWrong(t *testing.T) {
	for field, change := range map[string]func(*plan.Document){
		"plan.pipelines[0]":              func(d *plan.Document) { d.Plan.Pipelines[0].Digest = "" },
		"plan.pipelines[0].stages[0]":    func(d *plan.Document) { d.Plan.Pipelines[0].Stages[0].Lo = 1 },
		"plan.pipelines[0].stages[1]":    func(d *plan.Document) { d.Plan.Pipelines[0].Stages[1].Hi = 2 },
		"plan.pipelines[0].kv_positions": func(d *plan.Document) { d.Plan.Pipelines[0].KVPositions = -1 },
	} {
		d := document()
		change(d)
		text, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		_, err = plan.ParseDocument(text)
		if e := (*fault.Error)(nil); !errors.As(err, &e) || e.Code != fault.Invalid || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func FuzzParseDocument(f *testing.F) {
	text, err := document().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"Plan": {"Pipelines": [{"Digest": "d", "Stages": [{"Host": "a", "Lo": 0, "Hi": 1e9}]}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := plan.ParseDocument(text)
		if err != nil {
			if fault.CodeOf(err) != fault.Invalid {
				t.Errorf("%v is not Invalid", err)
			}
			return
		}
		for _, p := range d.Plan.Pipelines {
			at := 0
			for _, s := range p.Stages {
				if s.Lo != at || s.Hi <= s.Lo {
					t.Fatalf("stages %+v do not join", p.Stages)
				}
				at = s.Hi
			}
		}
	})
}
