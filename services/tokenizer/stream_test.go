package tokenizer_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// encodeStream runs an EncodeStream that pushes each piece.
func encodeStream(t *testing.T, c tokenizerv1.TokenizerServiceClient, open *tokenizerv1.EncodeOpen,
	pieces func(func([]byte) bool), early ...*int) (ids []uint32, starts, ends []uint64, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	stream, err := c.EncodeStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	receive := func() error {
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			ids, starts, ends = append(ids, r.GetIds()...), append(starts, r.GetStarts()...),
				append(ends, r.GetEnds()...)
			if !r.GetMore() {
				return nil
			}
		}
	}
	send := func(r *tokenizerv1.EncodeStreamRequest) error {
		if err := stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	}
	if err := send(
		&tokenizerv1.EncodeStreamRequest{Frame: &tokenizerv1.EncodeStreamRequest_Open{Open: open}},
	); err != nil {
		return ids, starts, ends, err
	}
	for p := range pieces {
		if err := send(
			&tokenizerv1.EncodeStreamRequest{
				Frame: &tokenizerv1.EncodeStreamRequest_Push{Push: &tokenizerv1.EncodePush{Text: p}},
			},
		); err != nil {
			return ids, starts, ends, err
		}
		if err := receive(); err != nil {
			return ids, starts, ends, err
		}
	}
	for _, n := range early {
		*n = len(ids)
	}
	if err := send(
		&tokenizerv1.EncodeStreamRequest{
			Frame: &tokenizerv1.EncodeStreamRequest_Flush{Flush: &tokenizerv1.EncodeFlush{}},
		},
	); err != nil {
		return ids, starts, ends, err
	}
	return ids, starts, ends, receive()
}

// cutUp splits a text at random byte offsets.
func cutUp(text string, most int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		r := rand.New(rand.NewPCG(5, 6))
		for len(text) > 0 {
			n := min(len(text), 1+r.IntN(most))
			if !yield([]byte(text[:n])) {
				return
			}
			text = text[n:]
		}
	}
}

func sameIDs(t *testing.T, got []uint32, want []int32) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d ids, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if int32(got[i]) != want[i] {
			t.Fatalf("id %d is %d, want %d", i, got[i], want[i])
		}
	}
}

func TestEncodeStream_SameAsWhole(t *testing.T) {
	v := bpe(t)
	_, c := serve(t, tokenizer.Model{Name: "m", Vocab: v})
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	words := []string{"the", " quick", " fox,", "\n", "\n\nBut", " 12", " é", "漢字", "<|im_end|>", "\r\n", "  ", "'s",
		"\tx", "🦊", "<|im_", "start|>\n"}
	for b.Len() < 400_000 {
		b.WriteString(words[r.IntN(len(words))])
	}
	text := b.String()
	for _, special := range []bool{false, true} {
		want, err := v.EncodeSpans(text, vocab.Options{Special: special, BOS: true})
		if err != nil {
			t.Fatal(err)
		}
		open := &tokenizerv1.EncodeOpen{Special: special, Spans: true}
		ids, starts, ends, err := encodeStream(t, c, open, cutUp(text, 9000))
		if err != nil {
			t.Fatal(err)
		}
		sameIDs(t, ids, want.IDs)
		for i, span := range want.Spans {
			if starts[i] != uint64(span[0]) || ends[i] != uint64(span[1]) {
				t.Fatalf("id %d has span %d:%d, want %v", i, starts[i], ends[i], span)
			}
		}
	}
}

// TestEncodeStream_RealVocabularies encodes a book with a vocabulary of every family that is
// available.
func TestEncodeStream_RealVocabularies(t *testing.T) {
	book, err := os.ReadFile(shared(t, "data", "war-and-peace.txt"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(book[:600_000])
	if testing.Short() {
		text = text[:200_000]
	}
	text = strings.ToValidUTF8(text, "")
	paths, err := filepath.Glob(filepath.Join(shared(t, "vectors", "tokenizer"), "*.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, shared(t, "vectors", "tokenizer", "qwen3-hf")) {
		m, err := tokenizer.Load(path, "m", "d")
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		_, c := serve(t, m)
		want, err := m.Vocab.Encode(text, vocab.Options{BOS: true})
		if err != nil {
			t.Fatal(err)
		}
		early := 0
		ids, _, _, err := encodeStream(t, c, &tokenizerv1.EncodeOpen{}, cutUp(text, 60_000), &early)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		sameIDs(t, ids, want)
		if early < len(ids)/2 {
			t.Errorf("%s: %d ids of %d came before the end", filepath.Base(path), early, len(ids))
		}
	}
}

func TestEncodeStream_TextWithoutSplitPointIsRefused(t *testing.T) {
	_, c := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t)})
	dots := slices.Repeat([]byte("."), 1<<20)
	_, _, _, err := encodeStream(t, c, &tokenizerv1.EncodeOpen{}, func(yield func([]byte) bool) {
		for range 6 {
			if !yield(dots) {
				return
			}
		}
	})
	if err == nil || !strings.Contains(err.Error(), "no split point") {
		t.Errorf("%v", err)
	}
}

func TestEncodeStream_Refuses(t *testing.T) {
	_, c := serve(t, tokenizer.Model{Name: "m", Vocab: bpe(t)})
	one := func(p string) func(func([]byte) bool) {
		return func(yield func([]byte) bool) { yield([]byte(p)) }
	}
	if _, _, _, err := encodeStream(t, c, &tokenizerv1.EncodeOpen{}, one("x\xff")); err == nil ||
		!strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("no UTF-8: %v", err)
	}
	if _, _, _, err := encodeStream(t, c, &tokenizerv1.EncodeOpen{Model: "z"}, one("x")); err == nil ||
		!strings.Contains(err.Error(), `"z"`) {
		t.Errorf("an unknown model: %v", err)
	}
	stream, err := c.EncodeStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(
		&tokenizerv1.EncodeStreamRequest{Frame: &tokenizerv1.EncodeStreamRequest_Flush{}},
	); err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); err == nil || status.Code(err) == codes.OK ||
		!strings.Contains(err.Error(), "open first") {
		t.Errorf("flush before open: %v", err)
	}
}
