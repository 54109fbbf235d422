//go:build unix

package modelfiles_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// charsmap returns a table of replacements as SentencePiece compiles it: a double-array trie
// with one rule, "A" to "a".
func charsmap() []byte {
	units := make([]uint32, 512)
	units[0] = 256 << 10                  // the root's children are at 256 ^ byte
	units[256^'A'] = 'A' | 1<<8 | 128<<10 // a node with a value; its leaf is at offset 128
	units[256^'A'^128] = 1 << 31          // the value: offset 0 of the pool
	blob := binary.LittleEndian.AppendUint32(nil, uint32(4*len(units)))
	for _, u := range units {
		blob = binary.LittleEndian.AppendUint32(blob, u)
	}
	return append(blob, "a\x00"...)
}

// tokenizers returns tokenizer.json files of every type of model and with most components.
func tokenizers() []string {
	var bytes, scored []string
	for c := range 256 {
		bytes = append(bytes, fmt.Sprintf(`"<0x%02X>":%d`, c, c+3))
		scored = append(scored, fmt.Sprintf(`["<0x%02X>",-%d.5]`, c, c))
	}
	added := `"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":1,"content":"<s>","special":true},
		{"id":2,"content":"</s>","special":true,"lstrip":true,"rstrip":true,"single_word":true,"normalized":true}]`
	spm := `{"version":"1.0","truncation":null,"padding":null,` + added + `,
		"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
		"pre_tokenizer":null,
		"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
			"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}},
		"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
			{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
		"model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,
			"byte_fallback":true,"ignore_merges":false,"vocab":{"<unk>":0,"<s>":1,"</s>":2,` + strings.Join(bytes, ",") + `,
			"▁":259,"t":260,"h":261,"e":262,"th":263,"the":264,"▁the":265},
			"merges":["t h",["th","e"],"▁ the"]}}`
	unigram := `{"version":"1.0",` + added + `,
		"normalizer":{"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":"` +
		base64.StdEncoding.EncodeToString(
			charsmap(),
		) + `"},{"type":"Strip","strip_left":true,"strip_right":false},{"type":"Nmt"},
			{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "},{"type":"NFKC"}]},
		"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"WhitespaceSplit"},{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}]},
		"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always"},
		"model":{"type":"Unigram","unk_id":0,"byte_fallback":true,"vocab":[["<unk>",0],["<s>",0],["</s>",0],["▁the",-2.5],["▁",-3],["a",-4]` +
		"," + strings.Join(scored, ",") + `]}}`
	wordPiece := `{"version":"1.0","added_tokens":[{"id":0,"content":"[UNK]","special":true},{"id":1,"content":"[CLS]","special":true},{"id":2,"content":"[SEP]","special":true}],
		"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},
		"pre_tokenizer":{"type":"BertPreTokenizer"},
		"post_processor":{"type":"BertProcessing","sep":["[SEP]",2],"cls":["[CLS]",1]},
		"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},
		"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,
			"vocab":{"[UNK]":0,"[CLS]":1,"[SEP]":2,"the":3,"qu":4,"##ick":5,"fox":6,"u":7,"##ber":8}}}`
	split := `{"version":"1.0","added_tokens":[],
		"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Lowercase"},{"type":"StripAccents"}]},
		"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t)|\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"},
			"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"Contiguous"},
			{"type":"FixedLength","length":5},{"type":"CharDelimiterSplit","delimiter":"-"}]},
		"decoder":{"type":"CTC","pad_token":"<pad>","word_delimiter_token":"|","cleanup":true},
		"model":{"type":"WordLevel","unk_token":"the","vocab":{"the":0,"quick":1,"fox":2}}}`
	return []string{spm, unigram, wordPiece, split}
}

// proto writes fields of a protocol buffer.
type proto []byte

func (p *proto) varint(field int, v uint64) {
	*p = binary.AppendUvarint(binary.AppendUvarint(*p, uint64(field<<3)), v)
}

func (p *proto) bytes(field int, v []byte) {
	*p = append(binary.AppendUvarint(binary.AppendUvarint(*p, uint64(field<<3|2)), uint64(len(v))), v...)
}

func (p *proto) float(field int, v float32) {
	*p = binary.LittleEndian.AppendUint32(binary.AppendUvarint(*p, uint64(field<<3|5)), math.Float32bits(v))
}

// sentencePiece writes a model of a type (1 unigram, 2 BPE, 3 words, 4 characters) with tokens
// of every kind and a table of replacements.
func sentencePiece(kind uint64) []byte {
	var m proto
	n := 0
	piece := func(text string, kind uint64) {
		var p proto
		p.bytes(1, []byte(text))
		p.float(2, -float32(n))
		p.varint(3, kind)
		m.bytes(1, p)
		n++
	}
	piece("<unk>", 2)
	piece("<s>", 3)
	piece("</s>", 3)
	piece("<sep>", 4)
	piece("unused", 5)
	for _, text := range []string{"▁the", "▁quick", "the", "▁", "t", "h", "e", "th", "qu", "ick", "ü", "🦊"} {
		piece(text, 1)
	}
	for c := range 256 {
		piece(fmt.Sprintf("<0x%02X>", c), 6)
	}
	var trainer, normalizer proto
	trainer.varint(3, kind)
	trainer.varint(24, 0)
	trainer.varint(35, 1)
	trainer.varint(40, 0)
	trainer.varint(41, 1)
	trainer.varint(42, 2)
	trainer.bytes(44, []byte(" ⁇ "))
	normalizer.bytes(1, []byte("test"))
	normalizer.bytes(2, charsmap())
	normalizer.varint(3, 1)
	normalizer.varint(4, 1)
	normalizer.varint(5, 1)
	m.bytes(2, trainer)
	m.bytes(3, normalizer)
	return m
}
