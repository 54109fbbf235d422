package checkpoint_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
)

// crashFS is a file system in memory that remembers what is durable. A machine that loses power keeps what
// was synced, and of the rest whatever it likes. The file system fails every operation from a given one on.
type crashFS struct {
	root    *folder
	ops     int // operations so far
	before  func(op int)
	crashAt int // the operation that fails, from 1; 0 for none
	log     []string
}

type node interface{ isNode() }

type folder struct{ now, durable map[string]node }

type file struct{ now, durable []byte }

func (*folder) isNode() {}
func (*file) isNode()   {}

var errPower = errors.New("power lost")

func newFolder() *folder { return &folder{map[string]node{}, map[string]node{}} }

func newCrashFS() *crashFS { return &crashFS{root: newFolder()} }

// op counts an operation, and fails it if the power is lost.
func (c *crashFS) op(what string) error {
	c.ops++
	if c.before != nil {
		c.before(c.ops)
	}
	c.log = append(c.log, what)
	if c.crashAt > 0 && c.ops >= c.crashAt {
		return errPower
	}
	return nil
}

func (c *crashFS) find(name string) node {
	var at node = c.root
	for _, part := range strings.Split(path.Clean(name), "/") {
		d, ok := at.(*folder)
		if part == "." {
			continue
		}
		if !ok || d.now[part] == nil {
			return nil
		}
		at = d.now[part]
	}
	return at
}

func (c *crashFS) folder(name string) (*folder, error) {
	if d, ok := c.find(name).(*folder); ok {
		return d, nil
	}
	return nil, &fs.PathError{Op: "find", Path: name, Err: fs.ErrNotExist}
}

func (c *crashFS) Create(name string) (checkpoint.WriteFile, error) {
	if err := c.op("create " + name); err != nil {
		return nil, err
	}
	d, err := c.folder(path.Dir(name))
	if err != nil {
		return nil, err
	}
	f, ok := d.now[path.Base(name)].(*file)
	if !ok {
		f = &file{}
		d.now[path.Base(name)] = f
	}
	f.now = nil
	return &openFile{c, f, name}, nil
}

func (c *crashFS) Open(name string) (checkpoint.ReadFile, error) {
	f, ok := c.find(name).(*file)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &openFile{c, f, name}, nil
}

func (c *crashFS) Rename(from, to string) error {
	if err := c.op("rename " + to); err != nil {
		return err
	}
	d, err := c.folder(path.Dir(from))
	if err != nil {
		return err
	}
	into, err := c.folder(path.Dir(to))
	if err != nil {
		return err
	}
	if d.now[path.Base(from)] == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	into.now[path.Base(to)] = d.now[path.Base(from)]
	delete(d.now, path.Base(from))
	return nil
}

func (c *crashFS) Mkdir(name string) error {
	if err := c.op("mkdir " + name); err != nil {
		return err
	}
	d, err := c.folder(path.Dir(name))
	if err != nil {
		return err
	}
	if d.now[path.Base(name)] != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
	}
	d.now[path.Base(name)] = newFolder()
	return nil
}

func (c *crashFS) Remove(name string) error {
	if err := c.op("remove " + name); err != nil {
		return err
	}
	d, err := c.folder(path.Dir(name))
	if err != nil {
		return err
	}
	if d.now[path.Base(name)] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if sub, ok := d.now[path.Base(name)].(*folder); ok && len(sub.now) > 0 {
		return errors.New("remove " + name + ": not empty")
	}
	delete(d.now, path.Base(name))
	return nil
}

func (c *crashFS) MakeDir(name string) error {
	if err := c.op("mkdir " + name); err != nil {
		return err
	}
	at := c.root
	for _, part := range strings.Split(name, "/") {
		if at.now[part] == nil {
			at.now[part] = newFolder()
		}
		at = at.now[part].(*folder)
	}
	return nil
}

func (c *crashFS) List(name string) ([]string, error) {
	d, err := c.folder(name)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(d.now)), nil
}

func (c *crashFS) SyncDir(name string) error {
	if err := c.op("sync folder " + name); err != nil {
		return err
	}
	d, err := c.folder(name)
	if err == nil {
		d.durable = maps.Clone(d.now)
	}
	return err
}

// openFile is an open file of a crashFS.
type openFile struct {
	fs   *crashFS
	f    *file
	name string
}

func (o *openFile) Write(p []byte) (int, error) {
	err := o.fs.op("write " + o.name)
	if err != nil {
		p = p[:len(p)/2] // a torn write
	}
	o.f.now = append(slices.Clone(o.f.now), p...)
	return len(p), err
}

func (o *openFile) Sync() error {
	if err := o.fs.op("sync " + o.name); err != nil {
		return err
	}
	o.f.durable = slices.Clone(o.f.now)
	return nil
}

func (o *openFile) Close() error         { return nil }
func (o *openFile) Size() (int64, error) { return int64(len(o.f.now)), nil }
func (o *openFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(o.f.now).ReadAt(p, off)
}

// after returns the file system as a reader finds it after the power was lost. keep decides about
// each change that was not synced, whether it is on the disk.
func (c *crashFS) after(keep func() bool) *crashFS {
	files := map[*file]*file{}
	var folders func(d *folder) *folder
	folders = func(d *folder) *folder {
		out := newFolder()
		names := maps.Clone(d.durable)
		for _, name := range slices.Sorted(maps.Keys(mergeKeys(d.now, d.durable))) {
			if d.now[name] != d.durable[name] && keep() {
				names[name] = d.now[name]
			}
		}
		for name, n := range names {
			switch n := n.(type) {
			case *folder:
				out.now[name] = folders(n)
			case *file:
				if files[n] == nil { // a file may have two names if a rename is half done
					content := n.durable
					switch {
					case bytes.Equal(n.now, n.durable):
					case keep():
						content = n.now
					case keep(): // the length is on the disk, the bytes are not
						content = make([]byte, len(n.now))
					case keep():
						content = n.now[:len(n.now)/2]
					}
					files[n] = &file{now: slices.Clone(content), durable: slices.Clone(content)}
				}
				out.now[name] = files[n]
			}
		}
		out.durable = maps.Clone(out.now)
		return out
	}
	return &crashFS{root: folders(c.root)}
}

func mergeKeys(a, b map[string]node) map[string]bool {
	out := map[string]bool{}
	for k := range a {
		out[k] = true
	}
	for k := range b {
		out[k] = true
	}
	return out
}

var (
	_ checkpoint.FS = (*crashFS)(nil)
	_ io.Writer     = (*openFile)(nil)
)
