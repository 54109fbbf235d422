package vocab

import (
	"fmt"
	"slices"
)

// Kind is the type of a token. The values are those of GGUF.
type Kind uint8

// Kinds of tokens.
const (
	KindUnspecified Kind = iota
	KindNormal           // a piece of text
	KindUnknown          // replaces text outside the vocabulary
	KindControl          // structure, never text: begin, end, turn markers
	KindUserDefined      // text that is always matched as one token
	KindUnused           // an id without a token
	KindByte             // one byte of text outside the vocabulary
)

// Families of vocabularies.
const (
	FamilyBPE  = "bpe"  // byte-level byte-pair encoding
	FamilySPM  = "spm"  // SentencePiece BPE with byte fallback
	FamilyChar = "char" // one token per character

	FamilyUnigram   = "unigram"   // SentencePiece's unigram model
	FamilyWordPiece = "wordpiece" // BERT's longest match within words
	FamilyWord      = "word"      // one token per word
)

// Vocab is one model's vocabulary. It is immutable and safe for concurrent use.
type Vocab struct {
	family string
	tokens []token
	ids    map[string]int32 // by spelling

	raw        *matcher // added tokens matched in the input text
	normalized *matcher // added tokens matched after normalization

	normalize normalizers
	steps     []step    // the pre-tokenizer
	scanners  []scanner // the steps, if all of them are scanners
	restart   bool      // a piece begins wherever a line begins with an ASCII letter
	model     model
	decoding  decoding
	encoders  encoders

	bos, eos     int32 // -1 if there is none
	eog          []int32
	prefix       []int32 // added before and after a text with Options.BOS
	suffix       []int32
	unk          int32
	fim          *FIM // nil where there is none
	chatTemplate string

	source *hfSource // what WriteHF writes; nil if it cannot write the vocabulary
}

// token is one entry of a vocabulary.
type token struct {
	text  string // its spelling in the vocabulary
	bytes string // the bytes it decodes to
	kind  Kind
	added bool // matched in text before the model runs

	headed bool // at the beginning of a text it decodes to head, not to bytes
	head   string
}

// model encodes one normalized, pre-tokenized piece of text.
type model interface {
	encode(piece string, k *sink) error
}

// TokenError reports an id or a token that is not in the vocabulary.
type TokenError struct {
	ID   int64 // the id, or -1
	Size int   // the vocabulary's size
}

// Error names the id.
func (e *TokenError) Error() string {
	return fmt.Sprintf("find token: id %d is outside the vocabulary of %d", e.ID, e.Size)
}

// TextError reports text that cannot be encoded.
type TextError struct {
	Offset int    // byte offset in the text, or in the piece if Piece is set
	Piece  string // the piece of text, shortened
	Reason string
}

// Error gives the position and the reason.
func (e *TextError) Error() string {
	if e.Piece != "" {
		return fmt.Sprintf("encode text: %s at byte %d of %q", e.Reason, e.Offset, e.Piece)
	}
	return fmt.Sprintf("encode text: %s at byte %d", e.Reason, e.Offset)
}

// FormatError reports a vocabulary file that is malformed or not supported.
type FormatError struct {
	Field       string // the file's field
	Reason      string
	Unsupported bool // as far as can be told well formed, but not supported
}

// Error names the field and the reason.
func (e *FormatError) Error() string {
	return fmt.Sprintf("read vocabulary: %s: %s", e.Field, e.Reason)
}

func malformed(field, reason string, args ...any) error {
	return &FormatError{Field: field, Reason: fmt.Sprintf(reason, args...)}
}

func unsupported(field, reason string, args ...any) error {
	return &FormatError{Field: field, Reason: fmt.Sprintf(reason, args...), Unsupported: true}
}

// Family is one of the constants above: "bpe", "spm", "unigram" and so on.
func (v *Vocab) Family() string { return v.family }

// Size is the number of ids; they run from 0 to Size-1.
func (v *Vocab) Size() int { return len(v.tokens) }

// Token returns the bytes an id decodes to and its kind, or a *TokenError.
func (v *Vocab) Token(id int32) ([]byte, Kind, error) {
	if id < 0 || int(id) >= len(v.tokens) {
		return nil, KindUnspecified, &TokenError{ID: int64(id), Size: len(v.tokens)}
	}
	t := &v.tokens[id]
	return []byte(t.bytes), t.kind, nil
}

// Spelling returns the token as the vocabulary's file spells it.
func (v *Vocab) Spelling(id int32) (string, error) {
	if id < 0 || int(id) >= len(v.tokens) {
		return "", &TokenError{ID: int64(id), Size: len(v.tokens)}
	}
	return v.tokens[id].text, nil
}

// ID returns the id of a token, given its spelling.
func (v *Vocab) ID(token string) (int32, bool) {
	id, ok := v.ids[token]
	return id, ok
}

// BOS is the token that begins a text, if there is one.
func (v *Vocab) BOS() (int32, bool) { return v.bos, v.bos >= 0 }

// EOS is the token that ends a text, if there is one.
func (v *Vocab) EOS() (int32, bool) { return v.eos, v.eos >= 0 }

// EOG lists all ids that end a generation in ascending order: end of text, end of
// turn, end of message.
func (v *Vocab) EOG() []int32 { return slices.Clone(v.eog) }

// AddBOS reports whether Options.BOS puts the begin token before a text.
func (v *Vocab) AddBOS() bool {
	return v.bos >= 0 && len(v.prefix) > 0 && v.prefix[0] == v.bos
}

// ChatTemplate is the model's chat template, or empty.
func (v *Vocab) ChatTemplate() string { return v.chatTemplate }

// endings lists the spellings of known end-of-text and end-of-turn tokens. A control
// token with such a spelling ends a generation even if the metadata does not say so.
func endings() []string {
	return []string{
		"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>",
		"<|end_of_text|>", "<|eom_id|>", "<EOT>", "_<EOT>", "<|eot|>", "<|END_OF_TURN_TOKEN|>",
		"<|end_of_turn|>", "<｜end▁of▁sentence｜>", "[EOS]", "[EOT]", "<turn|>",
		"<|tool_response>", "<end_of_utterance>", "<|flush|>", "<|calls|>",
	}
}

// finish sets the ids that end a generation: the given ones, the end token and the
// control tokens spelled like an ending, sorted and without duplicates.
func (v *Vocab) finish(eog []int32) {
	for _, name := range endings() {
		if id, ok := v.ids[name]; ok && v.tokens[id].kind == KindControl {
			eog = append(eog, id)
		}
	}
	if v.eos >= 0 {
		eog = append(eog, v.eos)
	}
	slices.Sort(eog)
	eog = slices.Compact(eog)
	// In the Harmony format <|end|> ends a message but not the answer; <|return|> and
	// <|call|> end the answer.
	_, ret := v.ids["<|return|>"]
	_, call := v.ids["<|call|>"]
	if end, ok := v.ids["<|end|>"]; ok && ret && call {
		eog = slices.DeleteFunc(eog, func(id int32) bool { return id == end && id != v.eos })
	}
	v.eog = eog
}
