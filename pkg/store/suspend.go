package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Suspend lets others fetch the file, until Resume. What is there can be read meanwhile, and is not removed.
func (p *Partial) Suspend() error {
	if p.lock == nil {
		return nil
	}
	h := p.lock
	p.lock = nil
	_ = p.s.root.Remove("locks/" + p.key)
	return h.release()
}

// Resume goes on with the fetch, with what others have fetched meanwhile. It waits while another one fetches the file.
func (p *Partial) Resume(ctx context.Context) error {
	if p.lock != nil {
		return nil
	}
	lock, err := p.s.lockFile(ctx, "locks/"+p.key, false)
	if err != nil {
		return err
	}
	p.lock = lock
	if p.data == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now, err := p.s.root.Stat("partial/" + p.key + "/" + logName)
	if errors.Is(err, fs.ErrNotExist) {
		return p.completed()
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "continue %s", p.want.Path)
	}
	if mine, err := p.log.Stat(); err != nil || !os.SameFile(mine, now) {
		return fault.New(fault.Aborted, "continue %s: its partial file was replaced", p.want.Path)
	}
	text, err := io.ReadAll(p.log) // from where this process has read or written last
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "continue %s", p.want.Path)
	}
	if n := len(text) % logRecord; n > 0 { // somebody was killed while he wrote
		end, err := p.log.Seek(-int64(n), io.SeekCurrent)
		if err == nil {
			err = p.log.Truncate(end)
		}
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "continue %s", p.want.Path)
		}
	}
	return p.take(ctx, text)
}

// completed takes over what another one has finished: the data are the same file under another name. The caller
// holds mu.
func (p *Partial) completed() error {
	if p.want.SHA256 == nil {
		return fault.New(fault.Aborted, "continue %s: its partial file is gone", p.want.Path)
	}
	f, err := p.s.whole(*p.want.SHA256, p.want.Size)
	if err != nil {
		return fault.Wrap(fault.Aborted, err, "continue %s: its partial file is gone", p.want.Path)
	}
	f.Path = p.want.Path
	r, err := p.s.OpenFile(f)
	if err != nil {
		return err
	}
	mine, err1 := p.data.Stat()
	now, err2 := r.f.Stat()
	if f.ChunkSize != p.want.ChunkSize || err1 != nil || err2 != nil || !os.SameFile(mine, now) {
		return errors.Join(
			fault.New(fault.Aborted, "continue %s: another file has taken its place", p.want.Path),
			r.Close(),
		)
	}
	copy(p.sums, r.sums)
	for i := range p.have {
		p.have[i] = true
	}
	p.left = 0
	return r.Close()
}

// Has reports whether chunk i is there.
func (p *Partial) Has(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.data == nil || i >= 0 && i < len(p.have) && p.have[i]
}

// Scaffold makes a folder with the files of a model that are being fetched, with holes where chunks are missing. The
// folder lasts until the lease is closed.
func (s *Store) Scaffold(ctx context.Context, m *Manifest, files []*Partial) (*Lease, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	if len(files) != len(m.Files) {
		return nil, fault.New(fault.Internal, "lay out model %s: %d files, want %d", m.Name, len(files), len(m.Files))
	}
	key := treeParts + randomName()
	lock, err := s.lockFile(ctx, "uses/"+key, true)
	if err != nil {
		return nil, err
	}
	tree := "trees/" + key + "/" + m.Name
	for i, f := range m.Files {
		if err != nil {
			break
		}
		err = fs.ErrNotExist
		if p := files[i]; p.data != nil {
			err = s.link("partial/"+p.key+"/"+dataName, tree+"/"+f.Path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = s.link("files/"+f.SHA256.String(), tree+"/"+f.Path)
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.root.RemoveAll("trees/"+key), lock.release())
	}
	out := Model{Manifest: *m, Path: s.path(tree), InUse: true}
	return &Lease{Model: out, lock: lock, drop: func() error {
		return errors.Join(s.root.RemoveAll("trees/"+key), s.root.Remove("uses/"+key))
	}}, nil
}
