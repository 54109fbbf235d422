package grammar_test

import (
	"fmt"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/grammar"
)

// A matcher computes which tokens may follow a text.
func Example() {
	tokens := [][]byte{[]byte(`{"n":`), []byte("1"), []byte("23"), []byte("x"), []byte("}"), nil}
	const end = 5
	v, err := grammar.NewVocabulary(tokens, end)
	if err != nil {
		panic(err)
	}
	g, err := grammar.Schema(
		[]byte(`{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}`))
	if err != nil {
		panic(err)
	}
	c, err := grammar.Compile(g, v)
	if err != nil {
		panic(err)
	}
	m := c.NewMatcher()
	mask := make([]uint64, v.Words())
	for _, id := range []int32{0, 2, 4, end} {
		if err := m.Mask(mask); err != nil {
			panic(err)
		}
		fmt.Printf("%06b accept %d\n", mask[0], id)
		if err := m.Accept(id); err != nil {
			panic(err)
		}
	}
	fmt.Println("done:", m.Done())
	// Output:
	// 000001 accept 0
	// 000110 accept 2
	// 010110 accept 4
	// 100000 accept 5
	// done: true
}

func ExampleRegex() {
	g, err := grammar.Regex(`[a-z]+@[a-z]+\.org`)
	if err != nil {
		panic(err)
	}
	c, err := grammar.Compile(g, nil)
	if err != nil {
		panic(err)
	}
	m := c.NewMatcher()
	fmt.Println(m.AcceptBytes([]byte("ada@lamina.o")), m.CanEnd())
	fmt.Printf("forced %q\n", m.Forced())
	// Output:
	// <nil> false
	// forced "rg"
}

func ExampleSchema_unsupported() {
	_, err := grammar.Schema([]byte(`{"properties":{"id":{"type":"string","pattern":"^(?!0)"}}}`))
	what, reason, _ := strings.Cut(err.Error(), "supported: ")
	fmt.Println(what + "supported:")
	fmt.Println(reason)
	// Output:
	// compile schema: pattern "^(?!0)" at "/properties/id" is not supported:
	// negative lookahead (?! (character 2): text is matched once, from left to right
}
