package session_test

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/session"
)

// A session feeds its token log to a pipeline: the prompt in chunks, then one position for
// each token that comes back. When the pipeline fails, a new session over the same log
// prefills another one.
func Example() {
	s := session.New([]int32{11, 12, 13, 14, 15})
	for {
		rows, ok := s.Next(2) // at most two positions per step
		if !ok {
			break
		}
		fmt.Println("send", rows.Pos, rows.IDs, "logits", rows.Logits)
	}
	fmt.Println("accepted", s.Token(5, 99)) // the sampler picked 99 for position 5
	rows, _ := s.Next(2)
	fmt.Println("send", rows.Pos, rows.IDs, "logits", rows.Logits)

	moved := session.New(s.Log())
	rows, _ = moved.Next(8)
	fmt.Println("send again", rows.Pos, rows.IDs, "logits", rows.Logits)
	// Output:
	// send 0 [11 12] logits false
	// send 2 [13 14] logits false
	// send 4 [15] logits true
	// accepted true
	// send 5 [99] logits true
	// send again 0 [11 12 13 14 15 99] logits true
}

// A token may arrive twice, or after its request was moved. Only the one that the session
// waits for counts.
func ExampleSession_Token() {
	s := session.New([]int32{11, 12})
	s.Next(8)
	fmt.Println(s.Token(2, 70), s.Token(2, 70), s.Token(9, 70))
	fmt.Println(s.Log())
	// Output:
	// true false false
	// [11 12 70]
}

// A Stopper holds back text that may become a stop string, so that a client never sees a
// part of one.
func ExampleStopper() {
	s := session.NewStopper([]string{"\nUser:"})
	for _, piece := range []string{"Yes.", "\nUs", "eful", "\nUser", ": more"} {
		show, stopped := s.Push(piece)
		fmt.Printf("%q %v\n", show, stopped)
	}
	// Output:
	// "Yes." false
	// "" false
	// "\nUseful" false
	// "" false
	// "" true
}
