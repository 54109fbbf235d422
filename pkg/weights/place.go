package weights

// Place says where a tensor's bytes are.
type Place struct {
	File        string // path of the file
	From, Bytes int64
}

// Placed is a Source whose tensors are parts of files. *GGUF and *Safetensors are.
type Placed interface {
	Source
	// Place returns where a tensor's bytes are.
	Place(name string) (Place, bool)
}

// Place returns where a tensor's bytes are.
func (g *GGUF) Place(name string) (Place, bool) {
	t, ok := g.tensors[name]
	if !ok {
		return Place{}, false
	}
	return Place{File: g.parts[t.part].file, From: t.from, Bytes: t.info.Bytes}, true
}

// Place returns where a tensor's bytes are.
func (s *Safetensors) Place(name string) (Place, bool) {
	t, ok := s.tensors[name]
	return Place{File: t.file, From: t.from, Bytes: t.info.Bytes}, ok
}

// GGUFHeader parses the beginning of a GGUF file. It returns an error if the header is malformed or does not end in
// the prefix; name is the file's name in errors.
func GGUFHeader(name string, prefix []byte) error {
	p := ggufPart{file: name, mapping: &mapping{bytes: prefix}, header: true}
	return p.parse()
}
