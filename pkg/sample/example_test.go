package sample_test

import (
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/sample"
)

// A picker samples one token after another. The same seed and position give the same
// token, in whatever process.
func ExamplePicker() {
	rules := sample.Rules{Temperature: 0.8, TopP: 0.95, Seed: 42}
	picker, err := sample.NewPicker(rules)
	if err != nil {
		fmt.Println(err)
		return
	}
	history := sample.NewHistory([]int32{1, 7}, nil) // the prompt
	row := []float32{0.1, 2.5, 0.3, 1.9}             // the model's logits for the next position
	var sum float64
	for _, logit := range row {
		sum += math.Exp(float64(logit))
	}
	choice, err := picker.PickRow(row, math.Log(sum), history, history.Len())
	if err != nil {
		fmt.Println(err)
		return
	}
	history.Emit(choice.ID, choice.Logprob)
	again, err := picker.PickRow(row, math.Log(sum), sample.NewHistory([]int32{1, 7}, nil), 2)
	fmt.Println(choice.ID == again.ID, history.Len(), err)
	// Output: true 3 <nil>
}

// Leave shows which tokens a chain keeps: .4 + .3 reaches .7.
func ExampleChain_Leave() {
	var logits []float64
	for _, p := range []float64{0.4, 0.3, 0.2, 0.1} {
		logits = append(logits, math.Log(p))
	}
	kept, err := sample.Chain{sample.TopP(0.7)}.Leave(logits, nil, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, k := range kept {
		fmt.Printf("%d %.3f\n", k.ID, k.Probability)
	}
	// Output:
	// 0 0.571
	// 1 0.429
}

// A few candidates and the log-sum-exp of the row decide the token, or Pick says that they
// do not.
func ExamplePicker_Pick() {
	picker, err := sample.NewPicker(sample.Rules{Temperature: 1, TopK: 2, Seed: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	row := []float32{3, 1, 2, 0}
	lse := math.Log(math.Exp(3) + math.Exp(1) + math.Exp(2) + 1)
	history := sample.NewHistory(nil, nil)
	few, err := picker.Pick(sample.Best(row, picker.Need(1000, 0)), lse, history, 0)
	whole, err2 := picker.PickWhole(row, lse, history, 0)
	fmt.Println(few.ID == whole.ID, err, err2)
	_, err = picker.Pick(sample.Best(row, 1), lse, history, 0)
	fmt.Println(err)
	// Output:
	// true <nil> <nil>
	// sample token: the sampling parameters need the whole row of logits
}

// Propose drafts what followed the last tokens before.
func ExamplePropose() {
	ids := []int32{5, 6, 7, 8, 9, 5, 6, 7}
	fmt.Println(sample.Propose(ids, 2, 3, 2))
	// Output: [8 9]
}
