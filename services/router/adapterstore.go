package router

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// adapterStore is the folder in which a router keeps the adapters that it was sent: a folder for each, named by the
// hexadecimal digits of its digest, in PEFT's layout, and an index of names. An empty dir stands for no store.
type adapterStore struct{ dir string }

const (
	adapterIndex    = "adapters.json"
	maxAdapterFile  = 4 << 30
	maxAdapterIndex = 4 << 20
	maxKept         = 256 // adapters in the store
)

// indexedName is a name in the index.
type indexedName struct {
	Model    string          `json:"model"` // digest
	Name     string          `json:"name"`
	Versions []indexedFolder `json:"versions"` // the current one first
	Since    time.Time       `json:"since"`
}

type indexedFolder struct {
	Digest string `json:"digest"`
	Dir    string `json:"dir,omitempty"` // outside of the store
}

// path returns the folder of an adapter in the store.
func (st adapterStore) path(digest adapter.Sum) string {
	return filepath.Join(st.dir, hex.EncodeToString(digest[:]))
}

// list lists the adapters in the store.
func (st adapterStore) list() []adapterVersion {
	if st.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(st.dir)
	if err != nil {
		return nil // nothing was stored yet
	}
	var out []adapterVersion
	for _, e := range entries {
		if digest, ok := adapter.ParseSum("sha256:" + e.Name()); ok {
			out = append(out, adapterVersion{digest, st.path(digest)})
		}
	}
	return out
}

// receive stores an adapter of which data returns the bytes of the tensors' file, piece by piece.
func (st adapterStore) receive(
	config []byte, size uint64, data func() ([]byte, error),
) (v adapterVersion, o *adapter.Outline, err error) {
	if size == 0 || size > maxAdapterFile {
		return v, nil, fault.Field("open.size", "want 1..%d bytes, got %d", int64(maxAdapterFile), size)
	}
	if _, err := adapter.ParseConfig(config); err != nil {
		return v, nil, err
	}
	if n := len(st.list()); n >= maxKept {
		return v, nil, fault.New(fault.Exhausted, "the folder of adapters has %d already; remove some", n)
	}
	if err := os.MkdirAll(st.dir, 0o755); err != nil {
		return v, nil, storeError(err)
	}
	tmp, err := os.MkdirTemp(st.dir, ".receive-")
	if err != nil {
		return v, nil, storeError(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := weights.WriteFile(filepath.Join(tmp, adapter.ConfigFile), func(w io.Writer) error {
		_, err := w.Write(config)
		return err
	}); err != nil {
		return v, nil, storeError(err)
	}
	if err := weights.WriteFile(filepath.Join(tmp, adapter.WeightsFile), func(w io.Writer) error {
		for left := size; left > 0; {
			piece, err := data()
			if err != nil {
				return err
			}
			if uint64(len(piece)) > left {
				return fault.Field("data", "is longer than the %d bytes of open.size", size)
			}
			left -= uint64(len(piece))
			if _, err := w.Write(piece); err != nil {
				return storeError(err)
			}
		}
		return nil
	}); err != nil {
		return v, nil, err
	}
	a, err := adapter.Open(tmp)
	if err == nil {
		err = a.CheckServed()
	}
	if err == nil {
		o = a.Outline()
		err = o.Check()
	}
	if err != nil {
		return v, nil, withoutPath(err, tmp)
	}
	v = adapterVersion{o.Digest(), st.path(o.Digest())}
	if err := os.Rename(tmp, v.dir); err != nil && !adapter.Is(v.dir) { // the same one may be there already
		return v, nil, storeError(err)
	}
	return v, o, nil
}

// withoutPath returns an error without the temporary folder in its text.
func withoutPath(err error, dir string) error {
	text := strings.ReplaceAll(err.Error(), "open adapter "+dir+": ", "")
	return fault.New(fault.CodeOf(err), "%s", strings.ReplaceAll(text, dir+string(filepath.Separator), ""))
}

func storeError(err error) error {
	return fault.Wrap(fault.Unavailable, err, "store adapter")
}

// save writes the index of names.
func (l *adapters) save() error {
	if l.store.dir == "" {
		return nil
	}
	if l.damaged != nil {
		return l.damaged
	}
	var list []indexedName
	for key, n := range l.names {
		in := indexedName{Model: key.model, Name: key.name, Since: n.since}
		for _, v := range slices.Insert(slices.Clone(n.earlier), 0, adapterVersion{n.current.digest, n.current.dir}) {
			f := indexedFolder{Digest: v.digest.String(), Dir: v.dir}
			if v.dir == l.store.path(v.digest) {
				f.Dir = ""
			}
			in.Versions = append(in.Versions, f)
		}
		list = append(list, in)
	}
	slices.SortFunc(list, func(a, b indexedName) int {
		return slices.Compare([]string{a.Model, a.Name}, []string{b.Model, b.Name})
	})
	if err := os.MkdirAll(l.store.dir, 0o755); err != nil {
		return storeError(err)
	}
	err := weights.WriteFile(filepath.Join(l.store.dir, adapterIndex), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(list)
	})
	if err != nil {
		return storeError(err)
	}
	return nil
}

// clean removes what an earlier process has not received whole.
func (st adapterStore) clean() {
	if st.dir == "" {
		return
	}
	left, err := filepath.Glob(filepath.Join(st.dir, ".receive-*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		_ = os.RemoveAll(dir) // it only takes room
	}
}

// index reads the index of names. One that does not exist is empty.
func (st adapterStore) index() ([]indexedName, error) {
	if st.dir == "" {
		return nil, nil
	}
	f, err := os.Open(filepath.Join(st.dir, adapterIndex))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, storeError(err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxAdapterIndex+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, storeError(err)
	}
	return parseIndex(text)
}

// parseIndex reads an index of names.
func parseIndex(text []byte) ([]indexedName, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.DataLoss, "read %s: %s", adapterIndex, fmt.Sprintf(format, args...))
	}
	if len(text) > maxAdapterIndex {
		return nil, bad("it has more than %d bytes", maxAdapterIndex)
	}
	var list []indexedName
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, bad("%v", err)
	}
	for i, n := range list {
		if err := CheckAdapterName(n.Name); err != nil || len(n.Versions) == 0 || len(n.Versions) > maxEarlier+1 {
			return nil, bad("entry %d: name %q with %d versions", i, n.Name, len(n.Versions))
		}
		for _, v := range n.Versions {
			if _, ok := adapter.ParseSum(v.Digest); !ok {
				return nil, bad("entry %d: digest %q", i, v.Digest)
			}
		}
	}
	return list, nil
}

// restore points the names of the index to the adapters of a model, unless they point to others already.
func (l *adapters) restore(digest, model string) {
	for _, in := range l.indexed {
		key := adapterName{digest, in.Name}
		if in.Model != digest || l.restored[key] {
			continue
		}
		l.restored[key] = true
		n := l.names[key]
		var versions []adapterVersion
		for _, v := range in.Versions {
			sum, _ := adapter.ParseSum(v.Digest) // parseIndex has checked it
			dir := v.Dir
			if dir == "" {
				dir = l.store.path(sum)
			}
			versions = append(versions, adapterVersion{sum, dir})
		}
		if n == nil {
			l.point(key, model, l.add(digest, versions[0]), in.Since)
			n, versions = l.names[key], versions[1:]
		}
		slices.Reverse(versions)
		for _, v := range versions {
			if v.digest != n.current.digest {
				n.remember(v)
			}
		}
	}
}
