package vocab_test

import (
	"context"
	"fmt"
	"slices"
	"testing/fstest"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// Train a small vocabulary, encode a text and decode it again.
func ExampleTrainBPE() {
	texts := slices.Values([]string{"low lower lowest", "new newer newest"})
	v, err := vocab.TrainBPE(context.Background(), texts, 270,
		vocab.TrainOptions{Special: []string{"<|end|>"}, EOS: "<|end|>"})
	if err != nil {
		fmt.Println(err)
		return
	}
	ids, err := v.Encode("lowest newest", vocab.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, id := range ids {
		piece, _, _ := v.Token(id)
		fmt.Printf("%q ", piece)
	}
	text, err := v.Decode(ids, vocab.DecodeOptions{})
	fmt.Println(text, err)
	// Output: "lo" "west" " ne" "west" lowest newest <nil>
}

// Read a tokenizer.json and show which bytes of the text each id stands for.
func ExampleFromFS() {
	v, err := vocab.FromFS(fstest.MapFS{"tokenizer.json": &fstest.MapFile{Data: []byte(`{
		"added_tokens": [{"id": 4, "content": "[SEP]", "special": true}],
		"pre_tokenizer": {"type": "WhitespaceSplit"},
		"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "token": 1, "##izer": 2, "a": 3}}}`)}})
	if err != nil {
		fmt.Println(err)
		return
	}
	e, err := v.EncodeSpans("a tokenizer[SEP]", vocab.Options{Special: true})
	fmt.Println(e.IDs, e.Spans, err)
	// Output: [3 1 2 4] [[0 1] [2 7] [7 11] [11 16]] <nil>
}

// Decode a stream of ids: a character whose bytes are spread over several ids comes
// out once it is complete.
func ExampleDecoder() {
	v, err := vocab.TrainBPE(context.Background(), slices.Values([]string{"x"}), 256, vocab.TrainOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ids, err := v.Encode("né", vocab.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := v.NewDecoder(vocab.DecodeOptions{})
	for _, id := range ids {
		text, err := d.Push(id)
		fmt.Printf("%q %v\n", text, err)
	}
	// Output:
	// "n" <nil>
	// "" <nil>
	// "é" <nil>
}
