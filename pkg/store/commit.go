package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// treeTemp begins the names of folders that a commit is making, and treeParts those of Scaffold.
const (
	treeTemp  = "new-"
	treeParts = "part-"
)

// Draft is a model that is to be committed.
type Draft struct {
	Name, Source, Revision string
	Digest                 string // that the model must have; empty if it is not known
	Replace                bool   // whether another model of this name is replaced
	Files                  []DraftFile
}

// DraftFile is a file of a draft. Files with the same content may have the same Partial.
type DraftFile struct {
	Path string
	File *Partial
}

// Commit adds a model whose files have been finished. It removes what other models do not need of the one that it
// replaces, and makes room for the new one.
func (s *Store) Commit(ctx context.Context, d Draft) (*Manifest, error) {
	m := &Manifest{Format: Format, Name: d.Name, Source: d.Source, Revision: d.Revision}
	for _, part := range d.Files {
		f := part.File.file
		if f.ChunkSize == 0 {
			return nil, fault.New(fault.FailedPrecondition, "commit %s: %s is not finished", d.Name, part.Path)
		}
		f.Path = part.Path
		m.Files = append(m.Files, f)
	}
	slices.SortFunc(m.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	if err := checkFiles(m.Files); err != nil {
		return nil, err
	}
	if err := CheckName(d.Name); err != nil {
		return nil, err
	}
	return m, s.locked(ctx, func() error { return s.commit(m, d) })
}

// TakenError reports a name that another model has.
type TakenError struct{ Name, Source string }

// Error names the model and where it came from.
func (e *TakenError) Error() string {
	text := "store model " + e.Name + ": another model has this name"
	if e.Source != "" {
		text += ", which came from " + e.Source
	}
	return text + ": choose another name (--name), or replace it (--replace)"
}

// FaultCode returns AlreadyExists.
func (e *TakenError) FaultCode() fault.Code { return fault.AlreadyExists }

func (s *Store) commit(m *Manifest, d Draft) error {
	before, err := s.manifest(d.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist) || fault.CodeOf(err) == fault.DataLoss:
	case err != nil:
		return err
	case before.Content() != m.Content() && !d.Replace:
		return &TakenError{d.Name, before.Source}
	}
	adopted := map[*Partial]bool{}
	for _, f := range d.Files {
		if adopted[f.File] {
			continue
		}
		adopted[f.File] = true
		if err := s.adopt(f.File); err != nil {
			return err
		}
	}
	if err := s.makeRoom(0, d.Name); err != nil {
		return err
	}
	if err := s.plant(m, d.Digest); err != nil {
		return err
	}
	text, err := m.Encode()
	if err != nil {
		return err
	}
	if err := s.write("models/"+m.Name+".json", text); err != nil {
		return err
	}
	h, err := s.tryLock(useOf(m), true) // the time of its file is that of the last use
	if h != nil {
		err = h.release()
	}
	if err != nil {
		return err
	}
	return s.sweep()
}

// adopt makes a finished file a whole one.
func (s *Store) adopt(p *Partial) error {
	sum := p.file.SHA256.String()
	if p.data != nil {
		dir := "partial/" + p.key
		if err := s.putSums(p.file, p.sums); err != nil {
			return err
		}
		if err := s.root.Chmod(dir+"/"+dataName, 0o444); err != nil {
			return err
		}
		if err := s.root.Rename(dir+"/"+dataName, "files/"+sum); err != nil {
			return err
		}
		if err := errors.Join(s.syncDir("files"), s.root.RemoveAll(dir)); err != nil {
			return err
		}
	}
	if p.want.Origin != "" {
		return s.write("origins/"+originKey(p.want), []byte(sum))
	}
	return nil
}

// plant makes the folder of a model, and fills in the model's digest.
func (s *Store) plant(m *Manifest, want string) error {
	temp := "trees/" + treeTemp + randomName()
	tree := temp + "/" + m.Name
	var sums []byte
	if err := s.root.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := s.link("files/"+f.SHA256.String(), tree+"/"+f.Path); err != nil {
			return err
		}
		text, err := s.read("sums/"+f.SHA256.String(), sumsHead+MaxChunks*int64(len(Sum{})))
		if err != nil {
			return err
		}
		sums = append(sums, text[min(len(text), sumsHead):]...)
	}
	digest, err := weights.Digest(filepath.Join(s.dir, tree))
	if err == nil && want != "" && digest != want {
		err = damage(m.Name, -1, "want the model %s, got %s", want, digest)
	}
	if err != nil {
		return errors.Join(err, s.root.RemoveAll(temp))
	}
	m.Digest = digest
	text, err := m.Encode()
	if err != nil {
		return err
	}
	if err := s.write(tree+"/"+ManifestName, text); err != nil {
		return err
	}
	if err := s.write(tree+"/"+SumsName, sums); err != nil {
		return err
	}
	final := "trees/" + m.key()
	if s.planted(m, final+"/"+m.Name) { // somebody may be using it
		return errors.Join(s.write(final+"/"+m.Name+"/"+ManifestName, text), s.root.RemoveAll(temp))
	}
	return errors.Join(s.root.RemoveAll(final), s.root.Rename(temp, final), s.syncDir("trees"))
}

// link gives a file another name.
func (s *Store) link(from, to string) error {
	err := s.root.MkdirAll(path.Dir(to), 0o755)
	if err == nil {
		err = s.root.Link(from, to)
	}
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, err, "link %s: the file system of the store has to have hard links",
			path.Base(to))
	}
	return nil
}

// randomName returns a name that nobody else has.
func randomName() string {
	var salt [8]byte
	rand.Read(salt[:]) // never fails
	return hex.EncodeToString(salt[:])
}

// planted reports whether a folder has links to the files of a model.
func (s *Store) planted(m *Manifest, tree string) bool {
	for _, f := range m.Files {
		file, err := s.root.Lstat("files/" + f.SHA256.String())
		if err != nil {
			return false
		}
		link, err := s.root.Lstat(tree + "/" + f.Path)
		if err != nil || !os.SameFile(file, link) {
			return false
		}
	}
	return true
}
