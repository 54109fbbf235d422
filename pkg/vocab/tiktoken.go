package vocab

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/vocab/pattern"
)

// TiktokenOptions holds what a rank file does not say.
type TiktokenOptions struct {
	// Name is a known encoding, which sets the pattern and the special tokens: "r50k_base"
	// ("gpt2"), "p50k_base", "p50k_edit", "cl100k_base", "o200k_base",
	// "o200k_harmony", "llama3", "qwen" or "kimi-k2". If it is empty,
	// the number of ranks tells the encoding; an unknown number means cl100k_base.
	Name string
	// Pattern replaces the pattern of the encoding unless it is empty.
	Pattern string
	// Special holds additional special tokens and their ids.
	Special map[string]int32
}

// tiktokenEncoding describes a known encoding.
type tiktokenEncoding struct {
	name    string
	ranks   int // number of ranks in its file
	style   style
	special map[string]int32
	eos     string
	bos     string
}

func tiktokenEncodings() []tiktokenEncoding {
	cl := styleLlama3()
	cl.atEnd = true
	llama := map[string]int32{"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001,
		"<|finetune_right_pad_id|>": 128004,
		"<|start_header_id|>":       128006, "<|end_header_id|>": 128007, "<|eom_id|>": 128008, "<|eot_id|>": 128009,
		"<|python_tag|>": 128010}
	reserved := 0
	for id := int32(128002); id < 128256; id++ {
		taken := false
		for _, x := range llama {
			taken = taken || x == id
		}
		if !taken {
			llama[fmt.Sprintf("<|reserved_special_token_%d|>", reserved)] = id
			reserved++
		}
	}
	fim := map[string]int32{"<|endoftext|>": 50256, "<|fim_prefix|>": 50281, "<|fim_middle|>": 50282,
		"<|fim_suffix|>": 50283}
	harmony := map[string]int32{"<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002,
		"<|constrain|>": 200003,
		"<|channel|>":   200005, "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012,
		"<|endofprompt|>": 200018}
	for id := int32(200000); id < 201088; id++ {
		if id != 200018 {
			switch id {
			case 200002, 200003, 200005, 200006, 200007, 200008, 200012:
			default:
				harmony[fmt.Sprintf("<|reserved_%d|>", id)] = id
			}
		}
	}
	end := map[string]int32{"<|endoftext|>": 50256}
	return []tiktokenEncoding{
		{"r50k_base", 50256, styleGPT2(), end, "<|endoftext|>", ""},
		{"gpt2", 50256, styleGPT2(), end, "<|endoftext|>", ""},
		{"p50k_base", 50280, styleGPT2(), end, "<|endoftext|>", ""},
		{"p50k_edit", 50280, styleGPT2(), fim, "<|endoftext|>", ""},
		{"cl100k_base", 100256, cl,
			map[string]int32{"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259,
				"<|fim_suffix|>": 100260, "<|endofprompt|>": 100276}, "<|endoftext|>", ""},
		{"o200k_base", 199998, styleO200k(), map[string]int32{"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
			"<|endoftext|>", ""},
		{"o200k_harmony", 199998, styleO200k(), harmony, "<|return|>", "<|startoftext|>"},
		{"llama3", 128000, styleLlama3(), llama, "<|end_of_text|>", "<|begin_of_text|>"},
		{"qwen", 151643, styleQwen2(),
			map[string]int32{"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}, "<|endoftext|>",
			""},
		{"kimi-k2", 163584, styleKimi(),
			map[string]int32{"[BOS]": 163584, "[EOS]": 163585, "<|im_end|>": 163586, "<|im_user|>": 163587,
				"<|im_assistant|>": 163588, "<|im_system|>": 163594, "<|im_middle|>": 163601, "[UNK]": 163838,
				"[PAD]": 163839}, "[EOS]", "[BOS]"},
	}
}

// FromTiktoken reads a rank file: one token per line, its bytes in base64 and its rank.
// The error is a *FormatError for a malformed file.
func FromTiktoken(data []byte, o TiktokenOptions) (*Vocab, error) {
	texts := map[string]int32{}
	size := int32(0)
	for number := 1; len(data) > 0; number++ {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte("\n"))
		line = bytes.TrimRight(line, "\r")
		if len(line) == 0 {
			continue
		}
		word, rank, ok := bytes.Cut(line, []byte(" "))
		text, err := base64.StdEncoding.DecodeString(string(word))
		id, err2 := strconv.ParseInt(string(rank), 10, 32)
		if !ok || err != nil || err2 != nil || id < 0 || id >= maxTokens || len(text) == 0 || len(text) > maxToken {
			return nil, malformed("tiktoken ranks", "line %d is not a token in base64 and its rank", number)
		}
		if _, twice := texts[string(text)]; twice {
			return nil, malformed("tiktoken ranks", "line %d repeats a token", number)
		}
		texts[string(text)] = int32(id)
		size = max(size, int32(id)+1)
	}
	if len(texts) == 0 || int(size) > 2*len(texts)+1024 {
		return nil, malformed("tiktoken ranks", "%d ids for %d tokens", size, len(texts))
	}
	e, err := o.encoding(len(texts))
	if err != nil {
		return nil, err
	}
	v := &Vocab{family: FamilyBPE, bos: -1, eos: -1, unk: -1, ids: make(map[string]int32, size)}
	special := map[string]int32{}
	for _, m := range []map[string]int32{e.special, o.Special} {
		for text, id := range m {
			if id < 0 || id >= maxTokens || text == "" {
				return nil, malformed("tiktoken special tokens", "%q has id %d", text, id)
			}
			special[text] = id
			size = max(size, id+1)
		}
	}
	v.tokens = make([]token, size)
	for i := range v.tokens {
		v.tokens[i].kind = KindUnused
	}
	alphabet := newByteLevel()
	for text, id := range texts {
		if v.tokens[id].kind != KindUnused {
			return nil, malformed("tiktoken ranks", "two tokens have rank %d", id)
		}
		v.tokens[id] = token{text: alphabet.encode(text), bytes: text, kind: KindNormal}
		v.ids[v.tokens[id].text] = id
	}
	var added []addedToken
	for _, text := range sorted(special) {
		id := special[text]
		if v.tokens[id].kind != KindUnused {
			return nil, malformed("tiktoken special tokens", "%q has the id of a rank, %d", text, id)
		}
		v.tokens[id] = token{text: text, bytes: text, kind: KindControl, added: true}
		v.ids[text] = id
		added = append(added, addedToken{id: id, text: text, control: true})
	}
	v.raw = newMatcher(added)
	if id, ok := special[e.eos]; ok && e.eos != "" {
		v.eos = id
	}
	if id, ok := special[e.bos]; ok && e.bos != "" {
		v.bos, v.prefix = id, []int32{id}
		if e.name == "o200k_harmony" || e.name == "kimi-k2" {
			v.prefix = nil
		}
	}
	if err := v.tiktokenModel(texts); err != nil {
		return nil, err
	}
	if err := e.cut(v, o.Pattern); err != nil {
		return nil, err
	}
	v.finish(nil)
	v.ready()
	return v, nil
}

func (o *TiktokenOptions) encoding(ranks int) (tiktokenEncoding, error) {
	var fallback tiktokenEncoding
	for _, e := range tiktokenEncodings() {
		if o.Name == "" && o.Pattern == "" && e.ranks == ranks || o.Name == e.name {
			return e, nil
		}
		if e.name == "cl100k_base" {
			fallback = tiktokenEncoding{style: e.style}
		}
	}
	if o.Name != "" {
		return fallback, unsupported("tiktoken encoding", "unknown encoding %q", o.Name)
	}
	return fallback, nil
}

func (e *tiktokenEncoding) cut(v *Vocab, src string) error {
	if src == "" {
		v.steps = []step{scan{&e.style}}
		return nil
	}
	if known := knownPattern(src); known != nil {
		v.steps = []step{scan{known}}
		return nil
	}
	p, err := pattern.Compile(src)
	if err != nil {
		return unsupported("tiktoken pattern", "%v", err)
	}
	v.steps = []step{&splitter{find: findPattern(p), behavior: removed, invert: true}}
	return nil
}

// tiktokenModel builds the table of merges: two tokens merge if their concatenation is
// a token, the smallest rank first.
func (v *Vocab) tiktokenModel(texts map[string]int32) error {
	m := &byteBPE{unk: -1, words: texts}
	for c := range m.bytes {
		id, ok := texts[string([]byte{byte(c)})]
		if !ok {
			id = -1
		}
		m.bytes[c] = id
	}
	n := 0
	for _, t := range v.tokens {
		if t.kind == KindNormal && len(t.bytes) > 1 {
			n++
		}
	}
	m.merges = newMerges(n, len(v.tokens))
	m.merges.grow(3 * n)
	rank := uint32(0)
	for id, t := range v.tokens {
		if t.kind != KindNormal || len(t.bytes) < 2 {
			continue
		}
		for i := 1; i < len(t.bytes); i++ {
			left, ok := texts[t.bytes[:i]]
			if !ok {
				continue
			}
			if right, ok := texts[t.bytes[i:]]; ok {
				m.merges.add(left, right, rank, int32(id))
			}
		}
		rank++
	}
	v.model = m
	return nil
}

// TiktokenName guesses the encoding by a file's name. It returns "" for an unknown name.
func TiktokenName(file string) string {
	file = strings.ToLower(file)
	for _, e := range tiktokenEncodings() {
		if strings.HasPrefix(file, e.name+".") || file == e.name {
			return e.name
		}
	}
	return ""
}
