package vocab

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// SentencePiece's model types.
const (
	spmUnigram = 1
	spmBPE     = 2
	spmWord    = 3
	spmChar    = 4
)

// unknownSurface is what the unknown token decodes to unless a model says otherwise.
const unknownSurface = " \u2047 "

// spmModel is a SentencePiece .model file: a protobuf message ModelProto.
type spmModel struct {
	texts  []string
	scores []float32
	kinds  []Kind

	kind       int
	suffix     bool // treat_whitespace_as_suffix
	bytes      bool
	unk        int64
	bos        int64
	eos        int64
	unkSurface string

	charsmap []byte
	dummy    bool // add_dummy_prefix: a space is put before the text
	squeeze  bool // remove_extra_whitespaces: runs of spaces become one, spaces around the text go
	escape   bool // escape_whitespaces: spaces become ▁
}

// FromSentencePiece reads a SentencePiece .model file. The error is a *FormatError
// for a malformed or unsupported file.
func FromSentencePiece(data []byte) (*Vocab, error) {
	m := &spmModel{kind: spmUnigram, bos: 1, eos: 2, unkSurface: unknownSurface, dummy: true, squeeze: true,
		escape: true}
	if err := m.read(data); err != nil {
		return nil, err
	}
	return m.vocab()
}

// field is one field of a protobuf message.
type field struct {
	number int
	value  uint64 // of numbers
	data   []byte // of bytes and messages
}

// fields calls yield for each field of a message.
func fields(name string, data []byte, yield func(f field) error) error {
	for at := 0; at < len(data); {
		key, n := binary.Uvarint(data[at:])
		if n <= 0 || key>>3 == 0 || key>>3 > 1<<29 {
			return malformed(name, "want a field at byte %d", at)
		}
		at += n
		f := field{number: int(key >> 3)}
		size := 0
		switch key & 7 {
		case 0:
			v, n := binary.Uvarint(data[at:])
			if n <= 0 {
				return malformed(name, "the number at byte %d is incomplete", at)
			}
			f.value, at = v, at+n
		case 1:
			size = 8
		case 2:
			v, n := binary.Uvarint(data[at:])
			if n <= 0 || v > uint64(len(data)-at-n) {
				return malformed(name, "field %d at byte %d is longer than the file", f.number, at)
			}
			at += n
			size = int(v)
			f.data = data[at : at+size]
		case 5:
			size = 4
		default:
			return malformed(name, "unknown wire type %d at byte %d", key&7, at)
		}
		if size > len(data)-at {
			return malformed(name, "field %d at byte %d is incomplete", f.number, at)
		}
		if key&7 == 5 {
			f.value = uint64(binary.LittleEndian.Uint32(data[at:]))
		}
		at += size
		if err := yield(f); err != nil {
			return err
		}
	}
	return nil
}

func (m *spmModel) read(data []byte) error {
	return fields("sentencepiece model", data, func(f field) error {
		switch f.number {
		case 1:
			return m.piece(f.data)
		case 2:
			return fields("sentencepiece trainer", f.data, func(f field) error {
				switch f.number {
				case 3:
					m.kind = int(f.value)
				case 24:
					m.suffix = f.value != 0
				case 35:
					m.bytes = f.value != 0
				case 40:
					m.unk = int64(int32(f.value))
				case 41:
					m.bos = int64(int32(f.value))
				case 42:
					m.eos = int64(int32(f.value))
				case 44:
					m.unkSurface = string(f.data)
				}
				return nil
			})
		case 3:
			return fields("sentencepiece normalizer", f.data, func(f field) error {
				switch f.number {
				case 2:
					m.charsmap = f.data
				case 3:
					m.dummy = f.value != 0
				case 4:
					m.squeeze = f.value != 0
				case 5:
					m.escape = f.value != 0
				}
				return nil
			})
		}
		return nil
	})
}

func (m *spmModel) piece(data []byte) error {
	text, score, kind := "", float32(0), KindNormal
	err := fields("sentencepiece piece", data, func(f field) error {
		switch f.number {
		case 1:
			text = string(f.data)
		case 2:
			score = math.Float32frombits(uint32(f.value))
		case 3:
			if f.value < 1 || f.value > uint64(KindByte) {
				return malformed("sentencepiece piece", "token %d has unknown type %d", len(m.texts), f.value)
			}
			kind = Kind(f.value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(text) > maxToken || len(m.texts) >= maxTokens || !utf8.ValidString(text) {
		return malformed("sentencepiece piece", "token %d is too long, not UTF-8, or one too many", len(m.texts))
	}
	if s := float64(score); math.IsNaN(s) || math.IsInf(s, 0) {
		return malformed("sentencepiece piece", "the score of token %d is not finite", len(m.texts))
	}
	m.texts, m.scores, m.kinds = append(m.texts, text), append(m.scores, score), append(m.kinds, kind)
	return nil
}

func (m *spmModel) vocab() (*Vocab, error) {
	if len(m.texts) == 0 {
		return nil, malformed("sentencepiece model", "no tokens")
	}
	v := &Vocab{tokens: make([]token, len(m.texts)), ids: make(map[string]int32, len(m.texts)), bos: -1, eos: -1,
		unk: -1}
	for i, text := range m.texts {
		if _, ok := v.ids[text]; ok {
			return nil, malformed("sentencepiece piece", "duplicate token %q", shorten(text))
		}
		v.ids[text] = int32(i)
		t := token{text: text, bytes: text, kind: m.kinds[i]}
		switch t.kind {
		case KindUnknown:
			t.bytes = m.unkSurface
			if v.unk >= 0 {
				return nil, malformed("sentencepiece piece", "tokens %d and %d are both the unknown token", v.unk, i)
			}
			v.unk = int32(i)
		case KindControl:
			t.added = true
		case KindByte:
			c, ok := byteToken(text)
			if !ok {
				return nil, malformed("sentencepiece piece", "token %d is a byte but is spelled %q", i, shorten(text))
			}
			t.bytes = string([]byte{c})
		default:
			t.bytes = strings.ReplaceAll(text, wordMark, " ")
		}
		v.tokens[i] = t
	}
	id := func(n int64) int32 {
		if n >= 0 && n < int64(len(v.tokens)) && v.tokens[n].kind == KindControl {
			return int32(n)
		}
		return -1
	}
	v.bos, v.eos = id(m.bos), id(m.eos)
	if v.bos >= 0 { // every model with these files wants it
		v.prefix = []int32{v.bos}
	}
	v.decoding.stripSpace = m.dummy || m.squeeze
	v.decoding.stripAll = m.squeeze
	if err := m.model(v); err != nil {
		return nil, err
	}
	v.finish(nil)
	v.ready()
	return v, nil
}

// model builds the normalizer and the model.
func (m *spmModel) model(v *Vocab) error {
	rules, err := newCharsmap(m.charsmap)
	if err != nil {
		return malformed("sentencepiece normalizer", "precompiled_charsmap: %v", err)
	}
	n := &spmNormalizer{rules: rules, dummy: m.dummy, squeeze: m.squeeze, escape: m.escape, suffix: m.suffix}
	pieces := map[string]int32{}
	var texts, own []string
	var ids, ownIDs []int32
	var bytes [256]int32
	for c := range bytes {
		bytes[c] = -1
	}
	var control, user []addedToken
	for i, t := range v.tokens {
		id := int32(i)
		switch t.kind {
		case KindControl:
			control = append(control, addedToken{id: id, text: t.text, control: true})
		case KindByte:
			if m.bytes {
				bytes[t.bytes[0]] = id
			}
		case KindUserDefined:
			own, ownIDs = append(own, t.text), append(ownIDs, id)
			user = append(user, addedToken{id: id, text: t.text})
			fallthrough
		case KindNormal, KindUnused:
			if t.text != "" {
				pieces[t.text] = id
				if t.kind != KindUnused {
					texts, ids = append(texts, t.text), append(ids, id)
				}
			}
		}
	}
	v.raw = newMatcher(control)
	if len(own) > 0 {
		n.own = newTrie(own, ownIDs)
	}
	v.normalize = normalizers{n.apply}
	all := !slices.Contains(bytes[:], -1)
	switch m.kind {
	case spmUnigram:
		v.family = FamilyUnigram
		return m.unigram(v, texts, ids, bytes, all)
	case spmBPE:
		v.family = FamilySPM
		model, err := newSPM(pieces, m.scores, bytes, v.unk)
		if err != nil {
			return err
		}
		model.fuse = true
		model.unused = m.unused(v, model)
		v.normalized = newMatcher(user)
		v.model = model
		if all {
			v.steps = append(v.steps, scan{newMergeBoundary(func(yield func(string) bool) {
				for _, t := range v.tokens {
					if (t.kind == KindNormal || t.kind == KindUserDefined || t.kind == KindUnused) && !yield(t.text) {
						return
					}
				}
			})})
		}
		return nil
	case spmWord, spmChar:
		v.family = FamilyWord
		model := &fusedWords{wordLevel{ids: pieces, unk: v.unk}, markScan(wordMark)}
		if m.kind == spmChar {
			v.family = FamilyChar
			model.cut = fixedLength(1)
		}
		v.normalized = newMatcher(user)
		v.model = model
		return nil
	}
	return unsupported("sentencepiece trainer", "unknown model type %d", m.kind)
}

func (m *spmModel) unigram(v *Vocab, texts []string, ids []int32, bytes [256]int32, all bool) error {
	scores := make([]float64, len(v.tokens))
	worst, best := float32(math.MaxFloat32), -float32(math.MaxFloat32)
	for i, t := range v.tokens {
		scores[i] = float64(m.scores[i])
		if t.kind == KindNormal {
			worst, best = min(worst, m.scores[i]), max(best, m.scores[i])
		}
	}
	if worst > best {
		worst, best = 0, 0
	}
	for i, t := range v.tokens {
		if t.kind == KindUserDefined { // so that it beats every way to split it
			scores[i] = float64(float32(len(t.text))*best) - 0.1
		}
	}
	model, err := newUnigram(texts, ids, scores, v.unk)
	if err != nil {
		return err
	}
	model.single, model.fuseUnk = true, true
	model.unkCost = float64(worst - unkPenalty)
	if all {
		model.bytes = &bytes
	}
	v.model = model
	return nil
}

// unused finds how to split the unused tokens: they take part in merges, but text never
// becomes one.
func (m *spmModel) unused(v *Vocab, model *spm) map[int32][]int32 {
	var out map[int32][]int32
	var k sink
	for i, t := range v.tokens {
		if t.kind != KindUnused {
			continue
		}
		if out == nil {
			out = map[int32][]int32{}
		}
		k.ids = k.ids[:0]
		model.split(v, t.text, &k)
		out[int32(i)] = slices.Clone(k.ids)
	}
	return out
}
