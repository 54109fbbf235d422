package vocab

// Piece is what decoding needs to know of one token.
type Piece struct {
	Bytes  string // what it decodes to
	Kind   Kind
	Added  bool // it is matched in text before the model sees it
	Headed bool // at the beginning of a text it decodes to Head instead
	Head   string
}

// Joining is how the pieces of a vocabulary join into text.
type Joining struct {
	StripSpace bool  // the text's first character, where it is a space, was added by encoding
	StripAll   bool  // and so were those after it, until other text comes
	JoinSpace  bool  // tokens are words, joined by spaces
	HeldSpace  bool  // a space at the end of a token is written only before another token
	Once       bool  // a token that occurs several times in a row is written once
	Unknown    int32 // the id that stands for text outside the vocabulary; -1 for none
}

// Pieces decodes ids exactly as the vocabulary it was taken from, without the parts that
// encode. It is immutable and safe for concurrent use.
type Pieces struct{ v *Vocab }

// NewPieces returns a decoder of pieces in the order of their ids.
func NewPieces(pieces []Piece, j Joining) *Pieces {
	v := &Vocab{tokens: make([]token, len(pieces)), unk: j.Unknown, decoding: decoding{
		stripSpace: j.StripSpace, stripAll: j.StripAll, joinSpace: j.JoinSpace, heldSpace: j.HeldSpace, once: j.Once,
	}}
	for i, p := range pieces {
		v.tokens[i] = token{bytes: p.Bytes, kind: p.Kind, added: p.Added, headed: p.Headed, head: p.Head}
	}
	return &Pieces{v}
}

// Size is the number of ids.
func (p *Pieces) Size() int { return p.v.Size() }

// Decode is Vocab.Decode.
func (p *Pieces) Decode(ids []int32, o DecodeOptions) (string, error) { return p.v.Decode(ids, o) }

// NewDecoder is Vocab.NewDecoder.
func (p *Pieces) NewDecoder(o DecodeOptions) *Decoder { return p.v.NewDecoder(o) }

// Piece is what decoding needs to know of an id of the vocabulary.
func (v *Vocab) Piece(id int32) Piece {
	t := &v.tokens[id]
	return Piece{Bytes: t.bytes, Kind: t.kind, Added: t.added, Headed: t.headed, Head: t.head}
}

// Joining is how the vocabulary's pieces join into text.
func (v *Vocab) Joining() Joining {
	d := &v.decoding
	return Joining{
		StripSpace: d.stripSpace, StripAll: d.stripAll, JoinSpace: d.joinSpace, HeldSpace: d.heldSpace,
		Once: d.once, Unknown: v.unk,
	}
}
