package corpus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// IndexName is the file of a folder that a build writes last. A folder without it is not token data.
const IndexName = "tokens.json"

// Index says what a folder of token data holds.
type Index struct {
	Format     int         `json:"format"` // 1
	Vocabulary Vocabulary  `json:"vocabulary"`
	Bits       int         `json:"bits"` // of a token in the shards
	Tokens     int64       `json:"tokens"`
	Documents  int64       `json:"documents"`
	TextBytes  int64       `json:"text_bytes"`
	Skipped    Skipped     `json:"skipped"`
	Shards     []ShardInfo `json:"shards"`
	Inputs     []InputInfo `json:"inputs"`
	Options    Options     `json:"options"`
}

// Vocabulary identifies a vocabulary.
type Vocabulary struct {
	Family string `json:"family"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"` // as DigestVocabulary computes it
	End    uint32 `json:"end"`    // the id that ends every document
	// Begin is the id that the model sees before the first token of a document. It is not in the shards.
	Begin uint32 `json:"begin"`
}

// ShardInfo describes a shard.
type ShardInfo struct {
	File      string `json:"file"`
	Tokens    int64  `json:"tokens"`
	Documents int64  `json:"documents"`
	TextBytes int64  `json:"text_bytes"`
	SHA256    string `json:"sha256"` // of the file after its header
}

// InputInfo is a file that was read.
type InputInfo struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// Skipped counts documents that were left out.
type Skipped struct {
	NotUTF8 int64 `json:"not_utf8"`
	NotJSON int64 `json:"not_json"`
	NoField int64 `json:"no_field"`
	Empty   int64 `json:"empty"`
}

// Total is the number of all of them.
func (s Skipped) Total() int64 { return s.NotUTF8 + s.NotJSON + s.NoField + s.Empty }

// Options are the settings of a build that decide its result.
type Options struct {
	Field       string `json:"field"`        // of a JSON line, with the text
	Lines       bool   `json:"lines"`        // every line of a text file is a document
	Skip        bool   `json:"skip"`         // leave bad documents out
	ShardTokens int64  `json:"shard_tokens"` // a shard ends with the document that reaches it
}

// DigestVocabulary returns the SHA-256 of a vocabulary: of kind, length and bytes of each token, in the order
// of their ids.
func DigestVocabulary(size int, piece func(id int32) vocab.Piece) string {
	h := sha256.New()
	var b []byte
	for id := range size {
		p := piece(int32(id))
		b = append(b[:0], byte(p.Kind))
		b = binary.AppendUvarint(b, uint64(len(p.Bytes)))
		h.Write(append(b, p.Bytes...))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ParseIndex reads an index. The name is for errors.
func ParseIndex(name string, text []byte) (*Index, error) {
	bad := func(field, format string, args ...any) error {
		return &FormatError{File: name, Offset: -1, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	x := &Index{}
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(x); err != nil {
		return nil, bad("json", "%v", err)
	}
	if x.Format != version {
		return nil, &FormatError{File: name, Offset: -1, Field: "format", Unsupported: true,
			Msg: fmt.Sprintf("want %d, got %d", version, x.Format)}
	}
	v := &x.Vocabulary
	if digest, err := hex.DecodeString(v.SHA256); err != nil || len(digest) != sha256.Size {
		return nil, bad("vocabulary.sha256", "want 64 hexadecimal digits, got %.80q", v.SHA256)
	}
	if v.Size < 1 || int64(v.End) >= int64(v.Size) || int64(v.Begin) >= int64(v.Size) {
		return nil, bad("vocabulary", "end id %d and begin id %d of %d ids", v.End, v.Begin, v.Size)
	}
	var tokens, documents int64
	for i, s := range x.Shards {
		if s.File == "" || s.File == "." || s.File == ".." || strings.ContainsAny(s.File, `/\:`) {
			return nil, bad(fmt.Sprintf("shards[%d].file", i), "%.80q is not the name of a file", s.File)
		}
		if s.Tokens < 0 || s.Tokens > maxTokens-tokens || s.Documents < 0 || s.Documents > s.Tokens {
			return nil, bad(fmt.Sprintf("shards[%d]", i), "%d tokens and %d documents", s.Tokens, s.Documents)
		}
		tokens, documents = tokens+s.Tokens, documents+s.Documents
	}
	if tokens != x.Tokens || documents != x.Documents || tokens == 0 {
		return nil, bad(
			"tokens",
			"%d tokens and %d documents, the shards have %d and %d",
			x.Tokens,
			x.Documents,
			tokens,
			documents,
		)
	}
	return x, nil
}

// Data is an open folder of token data. It is safe for concurrent use until Close.
type Data struct {
	Index  *Index
	Dir    string
	shards []*Shard
	docs   []int64 // documents before each shard
	tokens []int64 // tokens before each shard
}

// Open opens a folder that Build has written.
func Open(dir string) (*Data, error) {
	name := filepath.Join(dir, IndexName)
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "open token data")
	}
	x, err := ParseIndex(name, text)
	if err != nil {
		return nil, err
	}
	d := &Data{Index: x, Dir: dir}
	var docs, tokens int64
	for _, info := range x.Shards {
		s, err := OpenShard(filepath.Join(dir, info.File))
		if err == nil {
			d.shards, d.docs, d.tokens = append(d.shards, s), append(d.docs, docs), append(d.tokens, tokens)
			err = s.matches(x, info)
		}
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		docs, tokens = docs+info.Documents, tokens+info.Tokens
	}
	return d, nil
}

// matches reports how a shard differs from what the index says.
func (s *Shard) matches(x *Index, info ShardInfo) error {
	vocabulary := s.Vocabulary()
	for _, c := range []struct {
		field     string
		offset    int64
		got, want any
	}{
		{"bits", 12, s.h.bits, x.Bits}, {"vocabulary size", 16, int(s.h.vocab), x.Vocabulary.Size},
		{"end id", 20, s.h.end, x.Vocabulary.End}, {"tokens", 24, s.Tokens(), info.Tokens},
		{"documents", 32, s.Documents(), info.Documents}, {"text bytes", 40, s.TextBytes(), info.TextBytes},
		{"vocabulary", 48, hex.EncodeToString(vocabulary[:]), x.Vocabulary.SHA256},
		{"digest", 80, hex.EncodeToString(s.h.body[:]), info.SHA256},
	} {
		if c.got != c.want {
			return &FormatError{File: s.file, Offset: c.offset, Field: c.field,
				Msg: fmt.Sprintf("%v, but %s says %v", c.got, IndexName, c.want)}
		}
	}
	return nil
}

// Close closes all shards.
func (d *Data) Close() error {
	var errs []error
	for _, s := range d.shards {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// Verify reads all shards and checks their digests.
func (d *Data) Verify() error {
	for _, s := range d.shards {
		if err := s.Verify(); err != nil {
			return err
		}
	}
	return nil
}

// Documents is the number of documents.
func (d *Data) Documents() int64 { return d.Index.Documents }

// Document returns the shard of document i and its tokens [from, to) there.
func (d *Data) Document(i int64) (s *Shard, from, to int64) {
	at := sort.Search(len(d.docs), func(k int) bool { return d.docs[k] > i }) - 1
	s = d.shards[at]
	return s, s.End(i - d.docs[at] - 1), s.End(i - d.docs[at])
}

// end returns the number of tokens up to the end of document i; 0 for document -1.
func (d *Data) end(i int64) int64 {
	if i < 0 {
		return 0
	}
	at := sort.Search(len(d.docs), func(k int) bool { return d.docs[k] > i }) - 1
	return d.tokens[at] + d.shards[at].End(i-d.docs[at])
}

// Cut returns the first document of the last fraction of the tokens. A document is not divided, and at least
// one stays on either side if there are two.
func (d *Data) Cut(fraction float64) int64 {
	n := d.Documents()
	if fraction <= 0 {
		return n
	}
	keep := int64(float64(d.Index.Tokens) * (1 - fraction))
	at := int64(sort.Search(int(n), func(i int) bool { return d.end(int64(i)) > keep }))
	return max(min(at, n-1), min(1, n-1))
}
