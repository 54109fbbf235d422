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

// Library finds models in a folder. Each GGUF model, SentencePiece file, tiktoken file and model
// folder in it is a model. Its name is the file name without the extension and, for a split GGUF
// file, without the number of the part. It is safe for concurrent use.
type Library struct {
	dir string

	mu      sync.Mutex
	digests map[string]digested // by path
}

// digested is the digest of a model, with the size and time of its files when it was computed.
type digested struct {
	digest string
	size   int64
	at     time.Time
}

// NewLibrary returns the library of a folder. It reads nothing yet.
func NewLibrary(dir string) *Library { return &Library{dir: dir, digests: map[string]digested{}} }

// Open loads a model by its name or its digest, for Config.Open. To find a digest it reads every
// model of the folder completely, once. Errors are those of Load, or NotFound.
func (l *Library) Open(ctx context.Context, ref string) (Model, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return Model{}, fault.Wrap(fault.Unavailable, err, "read the library of models")
	}
	byDigest := strings.HasPrefix(ref, "sha256:")
	for _, e := range entries {
		path := filepath.Join(l.dir, e.Name())
		if !e.IsDir() && modelName(path) == e.Name() { // a file without a known extension
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
			if byDigest { // another model may have the digest
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

// digest returns the digest of a path. It is computed again only if the files have changed.
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

// stamp returns the total size of a path's files and the time of the latest change. For a part of a
// split model, these are the files of all parts.
func stamp(path string) (digested, error) {
	roots := []string{path}
	if stat, err := os.Stat(path); err == nil && !stat.IsDir() {
		if files, err := weights.Files(path); err == nil {
			roots = files
		}
	}
	var out digested
	for _, root := range roots {
		err := filepath.WalkDir(root, func(_ string, e os.DirEntry, err error) error {
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
		if err != nil {
			return out, err
		}
	}
	return out, nil
}
