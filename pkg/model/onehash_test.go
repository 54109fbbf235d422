package model_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
)

// chatHash is the hash of what class cpu/7 computes for the chat model, on every machine. A change
// of the order of sums changes the hash and needs a new class.
const chatHash = "f30bd28aa7143189583f4707d42d06a4b84a05dd959fd2e70f25c504c7f06e14"

// TestStage_ChatModelHasOneHash compares the logits of a prompt and of four greedy steps with
// one hash, for every vector instruction set.
func TestStage_ChatModelHasOneHash(t *testing.T) {
	files := open(t, shared(t, "models/smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"))
	prompt := random(rand.New(rand.NewPCG(4, 1)), files, 40)
	for _, instructions := range cpu.Instructions() {
		if instructions == "portable" {
			continue // takes minutes; other tests compare small models with this kernel set
		}
		t.Run(instructions, func(t *testing.T) {
			set, err := cpu.Open(0, instructions)
			if err != nil {
				t.Fatal(err)
			}
			defer set.Close()
			if set.Class() != "cpu/7" {
				t.Fatalf("class %s: chatHash is of cpu/7", set.Class())
			}
			c := newChain(t, files, kernel.Set[float32](set), 2)
			seq, hash := c.sequence(), sha256.New()
			for ids, pos := prompt, 0; pos < len(prompt)+4; {
				logits := c.run(t, part[float32]{seq, ids, pos})
				if err := binary.Write(hash, binary.LittleEndian, logits); err != nil {
					t.Fatal(err)
				}
				pos += len(ids)
				logits = logits[len(logits)-files.Spec.Vocab:]
				ids = []int32{int32(slices.Index(logits, slices.Max(logits)))}
			}
			if got := hex.EncodeToString(hash.Sum(nil)); got != chatHash {
				t.Errorf("hash %s, want %s", got, chatHash)
			}
		})
	}
}
