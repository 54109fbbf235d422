package swarm

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// maxHeader bounds the header of a file.
const maxHeader = 256 << 20

// headers fetches what has to be there for the model to be opened: the headers of files with tensors, and other files
// as a whole.
func (r *Remote) headers(ctx context.Context) error {
	for _, f := range r.model.Files {
		at := filepath.Join(r.lease.Path, filepath.FromSlash(f.Path))
		var err error
		switch path.Ext(f.Path) {
		case ".gguf":
			err = r.headerGGUF(ctx, at, f.Size)
		case ".safetensors":
			err = r.headerSafetensors(ctx, at, f.Size)
		default:
			err = r.Fetch(ctx, []Range{{at, 0, f.Size}}, nil)
		}
		if err != nil {
			return fmt.Errorf("open model %s: %w", r.model.Name, err)
		}
	}
	return r.heads(ctx)
}

// headerGGUF fetches more and more of a file until its header is there.
func (r *Remote) headerGGUF(ctx context.Context, at string, size int64) error {
	const first = 64 << 10
	for n := min(first, size); ; n = min(4*n, size) {
		prefix, err := r.prefix(ctx, at, n)
		if err != nil {
			return err
		}
		err = weights.GGUFHeader(at, prefix)
		if err == nil || n == size || n > maxHeader {
			return err
		}
	}
}

// headerSafetensors fetches the length of a header, and then the header.
func (r *Remote) headerSafetensors(ctx context.Context, at string, size int64) error {
	const head = 8
	prefix, err := r.prefix(ctx, at, min(head, size))
	if err != nil {
		return err
	}
	if len(prefix) < head {
		return fault.New(fault.DataLoss, "read %s: want at least %d bytes, got %d", at, head, size)
	}
	n := binary.LittleEndian.Uint64(prefix)
	if n > maxHeader || int64(n) > size-head {
		return fault.New(fault.DataLoss, "read %s: a header of %d bytes does not fit", at, n)
	}
	return r.Fetch(ctx, []Range{{at, 0, head + int64(n)}}, nil)
}

// prefix fetches and reads the first bytes of a file.
func (r *Remote) prefix(ctx context.Context, at string, n int64) ([]byte, error) {
	if err := r.Fetch(ctx, []Range{{at, 0, n}}, nil); err != nil {
		return nil, err
	}
	f, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make([]byte, n)
	_, err = io.ReadFull(f, out)
	return out, err
}

// heads fetches the head and the embedding of a Hugging Face model that says that they are tied, but has both:
// model.Open compares them to find out whether they are.
func (r *Remote) heads(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(r.lease.Path, "config.json"))
	if err != nil {
		return nil // a GGUF file says whether it has a head of its own
	}
	var config struct {
		Tied *bool `json:"tie_word_embeddings"`
		Text struct {
			Tied *bool `json:"tie_word_embeddings"`
		} `json:"text_config"`
	}
	if json.Unmarshal(text, &config) == nil && config.Tied != nil && !*config.Tied &&
		(config.Text.Tied == nil || !*config.Text.Tied) {
		return nil
	}
	s, err := weights.OpenSafetensors(r.lease.Path)
	if err != nil {
		return err
	}
	defer s.Close()
	var found []string
	head := false
	for _, name := range s.Names() {
		switch {
		case strings.HasSuffix(name, "lm_head.weight"):
			head = true
			found = append(found, name)
		case strings.HasSuffix(name, "embed_tokens.weight") || strings.HasSuffix(name, "wte.weight"):
			found = append(found, name)
		}
	}
	if !head {
		return nil
	}
	return r.FetchTensors(ctx, s, found, nil)
}

// FetchTensors fetches tensors of a source that was opened in the model's folder. progress is called with the bytes of
// their chunks that are there, and those of all of them.
func (r *Remote) FetchTensors(
	ctx context.Context, s weights.Placed, names []string, progress func(done, total int64),
) error {
	var ranges []Range
	for _, name := range names {
		p, ok := s.Place(name)
		if !ok {
			return fault.New(fault.Internal, "fetch model %s: it has no tensor %q", r.model.Name, name)
		}
		if p.Bytes > 0 {
			ranges = append(ranges, Range{p.File, p.From, p.From + p.Bytes})
		}
	}
	if progress == nil {
		return r.Fetch(ctx, ranges, nil)
	}
	wanted, err := r.cover(ranges)
	if err != nil {
		return err
	}
	done, total := int64(0), int64(0)
	for i, chunks := range wanted {
		for c := range chunks {
			total += r.parts[i].ChunkLen(c)
		}
	}
	progress(0, total)
	return r.Fetch(ctx, ranges, func(n int64) {
		done += n
		progress(done, total)
	})
}

// Has reports whether all bytes of a tensor are there.
func (r *Remote) Has(p weights.Place) bool {
	i, f, err := r.file(p.File)
	if err != nil {
		return false
	}
	for c := p.From / f.ChunkSize; c*f.ChunkSize < p.From+p.Bytes; c++ {
		if !r.parts[i].Has(int(c)) {
			return false
		}
	}
	return true
}
