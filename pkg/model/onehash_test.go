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

// chatHash is what class cpu/5 computes for the chat model, on every machine. An order of
// sums that gives another belongs to another class.
const chatHash = "f30bd28aa7143189583f4707d42d06a4b84a05dd959fd2e70f25c504c7f06e14"

// TestStage_ChatModelHasOneHash holds the logits of a prompt and of greedy steps behind it
// to one hash, over every family of instructions that computes in vectors.
func TestStage_ChatModelHasOneHash(t *testing.T) {
	files := open(t, shared(t, "models/smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"))
	prompt := random(rand.New(rand.NewPCG(4, 1)), files, 40)
	for _, instructions := range cpu.Instructions() {
		if instructions == "portable" {
			continue // plain Go takes minutes, and is held to the others on small models
		}
		t.Run(instructions, func(t *testing.T) {
			set, err := cpu.Open(0, instructions)
			if err != nil {
				t.Fatal(err)
			}
			defer set.Close()
			if set.Class() != "cpu/5" {
				t.Fatalf("class %s: chatHash is of cpu/5", set.Class())
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
