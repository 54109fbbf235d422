package vocab

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// hfSource holds the text of a vocabulary's Hugging Face files.
type hfSource struct {
	tokenizer []byte // tokenizer.json
	config    []byte // tokenizer_config.json, nil if there is none
}

// WriteHF writes tokenizer.json and tokenizer_config.json into dir, which must
// exist. FromHF and Hugging Face's libraries read them back. For a
// vocabulary read from GGUF the error is a *FormatError. Each file appears whole or
// not at all.
func (v *Vocab) WriteHF(dir string) error {
	if v.source == nil {
		return unsupported("write", "a vocabulary read from GGUF has no tokenizer.json")
	}
	if err := writeFile(filepath.Join(dir, "tokenizer.json"), v.source.tokenizer); err != nil {
		return err
	}
	if v.source.config == nil {
		return nil
	}
	return writeFile(filepath.Join(dir, "tokenizer_config.json"), v.source.config)
}

func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write vocabulary: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if e := f.Chmod(0o644); err == nil {
		err = e
	}
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write vocabulary: %w", err)
	}
	return nil
}

// layout describes a vocabulary that this package trained.
type layout struct {
	tokens    []string // by id
	special   []string
	merges    [][2]string
	byteLevel bool
	scores    []float64 // of a unigram model; nil for BPE
	bos, eos  string
}

// vocab writes the layout as Hugging Face files and reads them back, so that a trained
// vocabulary behaves as its files say.
func (l *layout) vocab() (*Vocab, error) {
	model, err := l.model()
	if err != nil {
		return nil, err
	}
	var added []hfAdded
	for id, t := range l.tokens {
		if slices.Contains(l.special, t) {
			added = append(added, hfAdded{ID: int64(id), Content: t, Special: true})
		}
	}
	var pre any
	decoder := any(object{"type": "Fuse"})
	if l.byteLevel {
		step := object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
		pre, decoder = step, step
	}
	if l.scores != nil {
		step := object{"type": "Metaspace", "replacement": wordMark, "prepend_scheme": "always", "split": true}
		pre, decoder = step, step
	}
	tokenizer, err := marshal(struct {
		Version       string    `json:"version"`
		Truncation    any       `json:"truncation"`
		Padding       any       `json:"padding"`
		AddedTokens   []hfAdded `json:"added_tokens"`
		Normalizer    any       `json:"normalizer"`
		PreTokenizer  any       `json:"pre_tokenizer"`
		PostProcessor any       `json:"post_processor"`
		Decoder       any       `json:"decoder"`
		Model         any       `json:"model"`
	}{
		Version: "1.0", AddedTokens: append([]hfAdded{}, added...), PreTokenizer: pre, Decoder: decoder, Model: model,
	})
	if err != nil {
		return nil, err
	}
	settings := object{
		"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false, "clean_up_tokenization_spaces": false,
	}
	if l.bos != "" {
		settings["bos_token"] = l.bos
	}
	if l.eos != "" {
		settings["eos_token"] = l.eos
	}
	config, err := marshal(settings)
	if err != nil {
		return nil, err
	}
	return parseHF(tokenizer, config)
}

// model returns the model section of tokenizer.json.
func (l *layout) model() (any, error) {
	if l.scores != nil {
		pieces := make([][2]any, len(l.tokens))
		for i, t := range l.tokens {
			pieces[i] = [2]any{t, l.scores[i]}
		}
		return struct {
			Type         string   `json:"type"`
			UnkID        int      `json:"unk_id"`
			Vocab        [][2]any `json:"vocab"`
			ByteFallback bool     `json:"byte_fallback"`
		}{Type: "Unigram", Vocab: pieces}, nil
	}
	vocab, err := l.vocabJSON()
	if err != nil {
		return nil, err
	}
	return struct {
		Type          string          `json:"type"`
		Dropout       any             `json:"dropout"`
		UnkToken      any             `json:"unk_token"`
		SubwordPrefix any             `json:"continuing_subword_prefix"`
		WordSuffix    any             `json:"end_of_word_suffix"`
		FuseUnk       bool            `json:"fuse_unk"`
		ByteFallback  bool            `json:"byte_fallback"`
		IgnoreMerges  bool            `json:"ignore_merges"`
		Vocab         json.RawMessage `json:"vocab"`
		Merges        [][2]string     `json:"merges"`
	}{Type: "BPE", Vocab: vocab, Merges: append([][2]string{}, l.merges...)}, nil
}

// vocabJSON writes the tokens in order of their ids.
func (l *layout) vocabJSON() (json.RawMessage, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for id, t := range l.tokens {
		if id > 0 {
			b.WriteByte(',')
		}
		key, err := marshal(t)
		if err != nil {
			return nil, err
		}
		b.Write(bytes.TrimSpace(key))
		fmt.Fprintf(&b, ":%d", id)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func marshal(x any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(x); err != nil {
		return nil, fmt.Errorf("write vocabulary: %w", err)
	}
	return b.Bytes(), nil
}

// sorted returns the keys in order.
func sorted[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
