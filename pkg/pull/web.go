package pull

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// Web is a model on an HTTP server: a GGUF file, of which any part names all of a split one, or a folder. A folder has
// a manifest (lamina.json, as the models in a store have), or the files of a Hugging Face model under their usual
// names.
type Web struct {
	Client *Client
	URL    string
}

// List finds out which files there are.
func (w *Web) List(ctx context.Context) (*Listing, error) {
	u, err := w.Client.parseURL(w.URL)
	if err != nil {
		return nil, err
	}
	u.Fragment = ""
	l := &Listing{Name: NameOf(u.Path), Source: bare(u)}
	if path.Ext(u.Path) == ".gguf" {
		return w.listGGUF(ctx, l, u)
	}
	if !strings.HasSuffix(u.Path, "/") {
		u.Path += "/"
	}
	l.Name = NameOf(u.Path)
	if l.Name == "" {
		l.Name = NameOf(u.Hostname())
	}
	at := func(name string) string { return u.JoinPath(strings.Split(name, "/")...).String() }
	text, _, err := w.Client.document(ctx, at(store.ManifestName))
	switch {
	case err == nil:
		sums, _, err := w.Client.document(ctx, at(store.SumsName))
		if err != nil && fault.CodeOf(err) != fault.NotFound {
			return nil, err
		}
		return listManifest(l, text, sums, func(f store.File) string { return at(f.Path) })
	case fault.CodeOf(err) != fault.NotFound:
		return nil, err
	}
	return w.listFolder(ctx, l, at)
}

// bare returns an address without its query, which may have a signature.
func bare(u *url.URL) string {
	out := *u
	out.RawQuery = ""
	return out.String()
}

// listGGUF lists a GGUF file, or all parts of a split one.
func (w *Web) listGGUF(ctx context.Context, l *Listing, u *url.URL) (*Listing, error) {
	names := []string{path.Base(u.Path)}
	if m := splitName.FindStringSubmatch(names[0]); m != nil {
		count, _ := strconv.Atoi(m[3])
		if count < 1 || count > store.MaxFiles {
			return nil, fault.Field("source", "%.80q has %d parts: want 1 to %d", names[0], count, store.MaxFiles)
		}
		names = names[:0]
		for i := range count {
			names = append(names, fmt.Sprintf("%s-%05d-of-%s.gguf", m[1], i+1, m[3]))
		}
	}
	for _, name := range names {
		at := *u
		at.Path, at.RawPath = path.Join(path.Dir(u.Path), name), ""
		f, err := w.file(ctx, name, at.String())
		if err != nil {
			return nil, err
		}
		l.Files = append(l.Files, f)
	}
	return l, nil
}

// file asks for the size of a file.
func (w *Web) file(ctx context.Context, name, at string) (File, error) {
	size, tag, ranges, err := w.Client.probe(ctx, at)
	return File{Path: name, Size: size, at: at, tag: tag, whole: !ranges, origin: at + " " + tag}, err
}

// listFolder lists a folder without a manifest by asking for the usual names.
func (w *Web) listFolder(ctx context.Context, l *Listing, at func(string) string) (*Listing, error) {
	var found []File
	for _, name := range append([]string{"model.safetensors"}, companions...) {
		f, err := w.file(ctx, name, at(name))
		switch {
		case err == nil:
			found = append(found, f)
		case fault.CodeOf(err) != fault.NotFound:
			return nil, err
		case name == "config.json":
			return nil, fault.New(
				fault.NotFound,
				"pull %s: it has neither %s nor config.json: name a .gguf file, or a "+
					"folder with one of these",
				l.Source,
				store.ManifestName,
			)
		}
	}
	for _, f := range found {
		if f.Path != indexName {
			continue
		}
		text, _, err := w.Client.document(ctx, f.at)
		if err != nil {
			return nil, err
		}
		shards, err := indexed(text)
		if err != nil {
			return nil, fmt.Errorf("pull %s: %w", l.Source, err)
		}
		for _, name := range shards {
			if name == "model.safetensors" {
				continue
			}
			f, err := w.file(ctx, name, at(name))
			if err != nil {
				return nil, err
			}
			found = append(found, f)
		}
	}
	var err error
	l.Files, err = Choose(l.Source, found, nil)
	return l, err
}

// Read opens a part of a file.
func (w *Web) Read(ctx context.Context, f File, from, to int64) (io.ReadCloser, error) {
	return w.Client.read(ctx, f, from, to)
}
