package weights

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
)

// open maps and reads the files of a model.
func (g *GGUF) open(path string) error {
	first, err := openPart(path, g.header)
	if err != nil {
		return err
	}
	count, split := first.meta.Uint(keySplitCount)
	if !split || count <= 1 {
		g.parts = []ggufPart{first}
		return g.join()
	}
	prefix, number, named, ok := splitName(filepath.Base(path))
	if !ok || uint64(named) != count {
		return errors.Join(first.mapping.close(),
			&FormatError{File: path, Offset: -1, Field: keySplitCount, Msg: fmt.Sprintf(
				"the file is one of %d parts, so its name must end in -00001-of-%05d.gguf or the like", count, count)})
	}
	for i := range named {
		part := first
		if i+1 != number {
			file := filepath.Join(filepath.Dir(path), partName(prefix, i+1, named))
			if part, err = openPart(file, g.header); errors.Is(err, fs.ErrNotExist) {
				err = &PartError{File: file, Part: i + 1, Count: named}
			}
		}
		if err != nil {
			if i+1 < number { // not among the parts yet
				err = errors.Join(err, first.mapping.close())
			}
			return err
		}
		g.parts = append(g.parts, part)
	}
	g.file = g.parts[0].file
	if err := g.checkSplit(); err != nil {
		return err
	}
	return g.join()
}

func openPart(path string, header bool) (ggufPart, error) {
	m, err := mapFile(path)
	if err != nil {
		return ggufPart{}, err
	}
	p := ggufPart{file: path, mapping: m, header: header}
	if err := p.parse(); err != nil {
		return ggufPart{}, errors.Join(err, m.close())
	}
	return p, nil
}

// Keys of split files: a part's number from 0, the number of parts, and the number of
// tensors in all parts.
const (
	keySplitNo      = "split.no"
	keySplitCount   = "split.count"
	keySplitTensors = "split.tensors.count"
)

// checkSplit checks that the metadata of every part agrees with its name.
func (g *GGUF) checkSplit() error {
	tensors := 0
	for _, p := range g.parts {
		tensors += len(p.names)
	}
	for i, p := range g.parts {
		for _, want := range []struct {
			key   string
			value int
		}{{keySplitNo, i}, {keySplitCount, len(g.parts)}, {keySplitTensors, tensors}} {
			if got, ok := p.meta.Uint(want.key); !ok || got != uint64(want.value) {
				value, _ := p.meta.Value(want.key)
				return &FormatError{File: p.file, Offset: -1, Field: want.key,
					Msg: fmt.Sprintf("want %d, got %.40q", want.value, fmt.Sprint(value))}
			}
		}
	}
	return nil
}

// join merges the parts' tensors into one table.
func (g *GGUF) join() error {
	g.meta, g.names, g.tensors = g.parts[0].meta, g.parts[0].names, g.parts[0].tensors
	if len(g.parts) == 1 {
		return nil
	}
	g.tensors = map[string]located{}
	for i, p := range g.parts {
		for _, name := range p.names {
			if other, twice := g.tensors[name]; twice {
				return &FormatError{File: p.file, Offset: -1, Field: clip(name),
					Msg: "the tensor is also in " + g.parts[other.part].file}
			}
			t := p.tensors[name]
			t.part = i
			g.tensors[name] = t
		}
		g.parts[i].names, g.parts[i].tensors = nil, nil
	}
	g.names = slices.Sorted(maps.Keys(g.tensors))
	return nil
}
