package corpus

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/lamina-mesh/lamina/pkg/weights"
)

// A shard file holds, little-endian:
//
//	offset  size  contents
//	0       8     "LMTOKENS"
//	8       4     version, 1
//	12      4     bits of a token, 16 or 32
//	16      4     number of ids in the vocabulary
//	20      4     the id that ends each document
//	24      8     tokens
//	32      8     documents
//	40      8     bytes of the documents' text
//	48      32    SHA-256 of the vocabulary
//	80      32    SHA-256 of everything after the header
//	112     16    zeros
//	128           the tokens; zeros up to a multiple of 8 bytes
//	              for each document, 8 bytes: the number of tokens up to its end
const (
	headerLen = 128
	version   = 1
	magic     = "LMTOKENS"
)

// maxTokens bounds the tokens of a shard, so that no product of sizes overflows.
const maxTokens = 1 << 48

// FormatError reports a malformed or unsupported file, as that of model files does.
type FormatError = weights.FormatError

// header is the header of a shard.
type header struct {
	bits              int
	vocab, end        uint32
	tokens, documents uint64
	textBytes         uint64
	vocabulary, body  [32]byte
}

func (h *header) encode() []byte {
	b := append(make([]byte, 0, headerLen), magic...)
	le := binary.LittleEndian
	for _, v := range []uint32{version, uint32(h.bits), h.vocab, h.end} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint64{h.tokens, h.documents, h.textBytes} {
		b = le.AppendUint64(b, v)
	}
	b = append(append(b, h.vocabulary[:]...), h.body[:]...)
	return append(b, make([]byte, headerLen-len(b))...)
}

// parseHeader reads the header of a file of the given size.
func parseHeader(file string, b []byte, size int64) (*header, error) {
	bad := func(offset int64, field, format string, args ...any) error {
		return &FormatError{File: file, Offset: offset, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	if len(b) < headerLen {
		return nil, bad(0, "header", "want %d bytes, got %d", headerLen, len(b))
	}
	if string(b[:8]) != magic {
		return nil, bad(0, "magic", "want %q, got %q", magic, b[:8])
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != version {
		return nil, &FormatError{File: file, Offset: 8, Field: "version", Unsupported: true,
			Msg: fmt.Sprintf("want %d, got %d", version, v)}
	}
	h := &header{bits: int(le.Uint32(b[12:])), vocab: le.Uint32(b[16:]), end: le.Uint32(b[20:]),
		tokens: le.Uint64(b[24:]), documents: le.Uint64(b[32:]), textBytes: le.Uint64(b[40:]),
		vocabulary: [32]byte(b[48:80]), body: [32]byte(b[80:112])}
	switch {
	case h.bits != 16 && h.bits != 32:
		return nil, bad(12, "bits", "want 16 or 32, got %d", h.bits)
	case h.vocab == 0 || h.vocab > math.MaxInt32 || h.bits == 16 && h.vocab > 1<<16:
		return nil, bad(16, "vocabulary size", "%d ids of %d bits", h.vocab, h.bits)
	case h.end >= h.vocab:
		return nil, bad(20, "end id", "%d is outside the vocabulary of %d", h.end, h.vocab)
	case h.tokens > maxTokens:
		return nil, bad(24, "tokens", "%d are more than %d", h.tokens, uint64(maxTokens))
	case h.documents > h.tokens:
		return nil, bad(32, "documents", "%d documents of %d tokens", h.documents, h.tokens)
	case h.textBytes > math.MaxInt64:
		return nil, bad(40, "text bytes", "%d is too large", h.textBytes)
	}
	for i, v := range b[112:headerLen] {
		if v != 0 {
			return nil, bad(int64(112+i), "reserved", "want 0, got %d", v)
		}
	}
	if want := h.size(); size != want {
		return nil, bad(24, "size", "want a file of %d bytes for %d tokens and %d documents, got %d", want, h.tokens,
			h.documents, size)
	}
	return h, nil
}

// documentsAt returns the offset of the ends of the documents.
func (h *header) documentsAt() int64 {
	return headerLen + (int64(h.tokens)*int64(h.bits/8)+7)&^7
}

// size returns the size of the file.
func (h *header) size() int64 { return h.documentsAt() + 8*int64(h.documents) }
