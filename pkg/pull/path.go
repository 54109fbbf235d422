package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// Path is a file or folder of this machine.
type Path struct {
	Path    string
	Include []string // as in Choose
}

// List lists the files of the model. A manifest in the folder tells their digests.
func (p *Path) List(context.Context) (*Listing, error) {
	abs, err := filepath.Abs(p.Path)
	if err != nil {
		return nil, err
	}
	stat, err := os.Stat(abs)
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "pull %s", p.Path)
	}
	l := &Listing{Name: NameOf(abs), Source: abs}
	dir, include := abs, p.Include
	if !stat.IsDir() {
		dir, include = filepath.Dir(abs), []string{quoteGlob(filepath.Base(abs))}
		if m := splitName.FindStringSubmatch(filepath.Base(abs)); m != nil {
			include = []string{quoteGlob(m[1]) + "-[0-9][0-9][0-9][0-9][0-9]-of-" + m[3] + ".gguf"}
		}
	}
	if stat.IsDir() {
		text, err := os.ReadFile(filepath.Join(dir, store.ManifestName))
		if err == nil {
			sums, err := os.ReadFile(filepath.Join(dir, store.SumsName))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fault.Wrap(fault.Unavailable, err, "pull %s", p.Path)
			}
			return listManifest(l, text, sums, func(f store.File) string {
				return filepath.Join(dir, filepath.FromSlash(f.Path))
			})
		}
	}
	files, err := p.scan(dir)
	if err != nil {
		return nil, err
	}
	l.Files, err = Choose(p.Path, files, include)
	if !stat.IsDir() && err == nil && filepath.Ext(abs) != ".gguf" {
		err = fault.New(fault.Invalid, "pull %s: want a GGUF file or a folder", p.Path)
	}
	return l, err
}

// scan lists the files of a folder. Links count as what they lead to: those who hold a cache of models use them.
func (p *Path) scan(dir string) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "pull %s", p.Path)
	}
	names := []string{"1_Pooling/config.json"}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	var out []File
	for _, name := range names {
		at := filepath.Join(dir, filepath.FromSlash(name))
		stat, err := os.Stat(at)
		if err != nil || !stat.Mode().IsRegular() {
			continue
		}
		tag := fmt.Sprint(stat.ModTime().UnixNano())
		out = append(out, File{Path: name, Size: stat.Size(), at: at, tag: tag, origin: "file:" + at + " " + tag})
	}
	return out, nil
}

// quoteGlob makes a pattern that matches a name alone.
func quoteGlob(name string) string {
	var out []rune
	for _, r := range name {
		if r == '*' || r == '?' || r == '[' || r == '\\' {
			out = append(out, '\\')
		}
		out = append(out, r)
	}
	return string(out)
}

// listManifest makes a listing of a manifest, and of the digests of its chunks if there are any.
func listManifest(l *Listing, text, sums []byte, at func(store.File) string) (*Listing, error) {
	m, err := store.ParseManifest(text)
	chunks := make([]store.Sums, 0)
	if err == nil && len(sums) > 0 {
		chunks, err = m.ParseSums(sums)
	}
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", l.Source, err)
	}
	l.Name, l.Digest, l.Revision = m.Name, m.Digest, m.Revision
	for i, f := range m.Files {
		file := File{Path: f.Path, Size: f.Size, SHA256: &f.SHA256, ChunkSize: f.ChunkSize, at: at(f)}
		if len(chunks) > 0 {
			file.Sums = chunks[i]
		}
		l.Files = append(l.Files, file)
	}
	return l, nil
}

// Read opens a part of a file.
func (p *Path) Read(_ context.Context, f File, from, to int64) (io.ReadCloser, error) {
	in, err := os.Open(f.at)
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "pull %s", p.Path)
	}
	stat, err := in.Stat()
	if err == nil && (stat.Size() != f.Size || f.tag != "" && f.tag != fmt.Sprint(stat.ModTime().UnixNano())) {
		err = &ChangedError{File: f.at}
	}
	if err != nil {
		_ = in.Close()
		return nil, err
	}
	return part{io.NewSectionReader(in, from, to-from), in}, nil
}

// part is a part of a file that closes the file.
type part struct {
	io.Reader
	io.Closer
}

// ChangedError reports a file that has changed while it was being fetched.
type ChangedError struct{ File string }

// Error names the file.
func (e *ChangedError) Error() string {
	return fmt.Sprintf("pull %s: it has changed meanwhile: pull again", e.File)
}

// FaultCode returns Aborted.
func (e *ChangedError) FaultCode() fault.Code { return fault.Aborted }
