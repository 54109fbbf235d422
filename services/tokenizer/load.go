package tokenizer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// maxVocab is the maximum size of a vocabulary file that is read into memory.
const maxVocab = 256 << 20

// Load reads the vocabulary, chat templates and generation settings of any path that LoadVocab reads. An
// empty name becomes the file name without its extension. An empty digest is computed,
// which reads the whole model. The error is a fault.Error: NotFound for a missing file or
// a model without a tokenizer, Unimplemented for an unsupported tokenizer, Invalid for a
// malformed one.
func Load(path, name, digest string) (Model, error) {
	v, err := LoadVocab(path)
	if err != nil {
		return Model{}, err
	}
	if name == "" {
		name = modelName(path)
	}
	if digest == "" {
		if digest, err = weights.Digest(path); err != nil {
			return Model{}, fault.Wrap(fault.Invalid, err, "compute the digest of %s", path)
		}
	}
	m := Model{Name: name, Digest: digest, Vocab: v}
	if kind, _, err := kindOf(path); err == nil && (kind == kindFolder || kind == kindGGUF) {
		if m.Chat, err = LoadChat(path); err != nil {
			return Model{}, err
		}
		if m.Defaults, err = LoadDefaults(path); err != nil {
			return Model{}, err
		}
	}
	return m, nil
}

// kind is the type of a path's contents.
type kind int

const (
	kindFolder kind = iota + 1
	kindGGUF
	kindJSON
	kindTiktoken
	kindSentencePiece
)

// kindOf returns the kind of a file, from its first bytes. For a folder with one GGUF model it
// returns that model's file. If a folder has several models and a tokenizer.json, it returns the
// tokenizer.json.
func kindOf(path string) (kind, string, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return 0, "", err
	}
	if stat.IsDir() {
		at, err := weights.Locate(path)
		switch _, missing := os.Stat(filepath.Join(path, "tokenizer.json")); {
		case err != nil && missing != nil:
			return 0, "", err
		case err == nil && at.Format == weights.FormatGGUF:
			return kindGGUF, at.Path, nil
		}
		return kindFolder, path, nil
	}
	head := make([]byte, 512)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return 0, "", err
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("GGUF")):
		return kindGGUF, path, nil
	case bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n\ufeff"), []byte("{")):
		return kindJSON, path, nil
	case isRanks(head):
		return kindTiktoken, path, nil
	case len(head) > 0 && head[0] == '\n': // the first field of SentencePiece's message
		return kindSentencePiece, path, nil
	}
	return 0, "", fault.New(fault.Invalid, "read %s: want a GGUF, tokenizer.json, SentencePiece or tiktoken file", path)
}

// isRanks reports whether a file begins with a line of base64 and a number.
func isRanks(head []byte) bool {
	line, _, found := bytes.Cut(head, []byte("\n"))
	token, rank, two := bytes.Cut(bytes.TrimRight(line, "\r"), []byte(" "))
	return found && two && len(token) > 0 && len(rank) > 0 && len(bytes.Trim(rank, "0123456789")) == 0 &&
		len(bytes.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")) == 0
}

// LoadVocab reads the vocabulary of a GGUF file (with or without tensors, or a part of a split
// one), a Hugging Face folder or its tokenizer.json, a SentencePiece model, a tiktoken rank file,
// or a folder that contains one of them.
func LoadVocab(path string) (*vocab.Vocab, error) {
	v, err := readVocab(path)
	if err != nil {
		return nil, loadFault(path, err)
	}
	return v, nil
}

func readVocab(path string) (*vocab.Vocab, error) {
	kind, file, err := kindOf(path)
	if err != nil {
		return nil, err
	}
	switch kind {
	case kindFolder:
		v, err := vocab.FromHF(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
		for _, name := range []string{"tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model",
			"qwen.tiktoken"} {
			if _, missing := os.Stat(filepath.Join(path, name)); missing == nil {
				return readVocab(filepath.Join(path, name))
			}
		}
		return nil, err
	case kindGGUF:
		v, err := ggufVocab(file)
		if file != path && fault.CodeOf(err) == fault.NotFound {
			// A GGUF model without a vocabulary may have its tokenizer in the same folder.
			if beside, err := vocab.FromHF(path); !errors.Is(err, fs.ErrNotExist) {
				return beside, err
			}
		}
		return v, err
	case kindJSON:
		if filepath.Base(path) == "tokenizer.json" {
			return vocab.FromHF(filepath.Dir(path))
		}
		return vocab.FromFS(oneFile{path})
	}
	data, err := readAll(path)
	if err != nil {
		return nil, err
	}
	if kind == kindTiktoken {
		return vocab.FromTiktoken(data, vocab.TiktokenOptions{Name: vocab.TiktokenName(filepath.Base(path))})
	}
	return vocab.FromSentencePiece(data)
}

// oneFile is a file system that holds only a tokenizer.json.
type oneFile struct{ path string }

// Open opens the file.
func (f oneFile) Open(name string) (fs.File, error) {
	if name != "tokenizer.json" {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return os.Open(f.path)
}

func readAll(path string) ([]byte, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if stat.Size() > maxVocab {
		return nil, fmt.Errorf("want at most %d bytes, got %d", maxVocab, stat.Size())
	}
	return os.ReadFile(path)
}

func ggufVocab(path string) (*vocab.Vocab, error) {
	file, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if name, ok := file.Meta().String("tokenizer.ggml.model"); !ok || name == "none" || name == "no_vocab" {
		return nil, fault.New(fault.NotFound, "the file holds no tokenizer")
	}
	return vocab.FromGGUF(file.Meta())
}

func loadFault(path string, err error) error {
	var format *vocab.FormatError
	code := fault.Invalid
	switch {
	case errors.Is(err, fs.ErrNotExist), fault.CodeOf(err) == fault.NotFound:
		code = fault.NotFound
	case errors.As(err, &format) && format.Unsupported, fault.CodeOf(err) == fault.Unimplemented:
		code = fault.Unimplemented
	}
	return fault.Wrap(code, err, "load the vocabulary of %s", path)
}
