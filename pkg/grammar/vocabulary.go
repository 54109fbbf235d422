package grammar

// Vocabulary is the bytes of a model's tokens, laid out for masks.
type Vocabulary struct {
	tokens [][]byte
	end    map[int32]bool
}

// Size is the number of ids.
func (v *Vocabulary) Size() int { return len(v.tokens) }

func (v *Vocabulary) ends(id int32) bool { return v.end[id] }

func (v *Vocabulary) bytes(id int32) []byte { return v.tokens[id] }
