package tokenizer

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// Library finds models in a folder: each of its GGUF, SentencePiece and tiktoken
// files and Hugging Face folders is a model, named by its last part without its
// ending. It is safe for concurrent use.
type Library struct {
	dir string

	mu      sync.Mutex
	digests map[string]digested // by path
}

// digested is a file's digest as it was at a moment.
type digested struct {
	digest string
	size   int64
	at     time.Time
}

// NewLibrary is the library of a folder. Nothing is read yet.
func NewLibrary(dir string) *Library { return &Library{dir: dir, digests: map[string]digested{}} }

// Open loads the model of a name or a digest, for Config.Open. To find a digest the
// folder's models are read whole, once each. Errors are Load's, or NotFound.
func (l *Library) Open(ctx context.Context, ref string) (Model, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return Model{}, fault.Wrap(fault.Unavailable, err, "read the library of models")
	}
	byDigest := strings.HasPrefix(ref, "sha256:")
	for _, e := range entries {
		path := filepath.Join(l.dir, e.Name())
		if !e.IsDir() && modelName(path) == e.Name() { // a file without a known ending
			continue
		}
		if !byDigest && modelName(path) != ref {
			continue
		}
		if ctx.Err() != nil {
			return Model{}, ctx.Err()
		}
		digest, err := l.digest(path)
		if err != nil {
			if byDigest { // another may be the one
				continue
			}
			return Model{}, err
		}
		if byDigest && digest != ref {
			continue
		}
		return Load(path, "", digest)
	}
	return Model{}, fault.New(fault.NotFound, "find model %q: it is not in the library", ref)
}

// digest computes a path's digest, unless it is known and the files are as they
// were.
func (l *Library) digest(path string) (string, error) {
	now, err := stamp(path)
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "read the library of models")
	}
	l.mu.Lock()
	known, ok := l.digests[path]
	l.mu.Unlock()
	if ok && known.size == now.size && known.at.Equal(now.at) {
		return known.digest, nil
	}
	if now.digest, err = weights.Digest(path); err != nil {
		return "", fault.Wrap(fault.Invalid, err, "compute the digest of %s", path)
	}
	l.mu.Lock()
	l.digests[path] = now
	l.mu.Unlock()
	return now.digest, nil
}

// stamp adds up the sizes of a path's files and takes the latest change.
func stamp(path string) (digested, error) {
	var out digested
	err := filepath.WalkDir(path, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !e.IsDir() {
			out.size += info.Size()
		}
		if info.ModTime().After(out.at) {
			out.at = info.ModTime()
		}
		return nil
	})
	return out, err
}
