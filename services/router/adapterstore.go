package router

import (
	"cmp"
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
//
// The store is bounded. When there is no room for an adapter, those that have not been used for the longest time
// are removed, but never one that a name points to or a request uses, and not the one before of a name. When an
// adapter was last used is the time of its config file.
type adapterStore struct {
	dir   string
	limit int64 // bytes of all files
}

const (
	adapterIndex       = "adapters.json"
	unfinished         = ".receive-" // begins the names of folders that are being received or removed
	maxAdapterFile     = 4 << 30
	maxAdapterIndex    = 4 << 20
	maxKept            = 256     // adapters in the store
	maxNames           = 1024    // of adapters, so that the index stays below its limit
	defaultAdapterDisk = 8 << 30 // bytes
)

// storedAdapter is an adapter in the store.
type storedAdapter struct {
	adapterVersion
	bytes int64
	used  time.Time
}

// indexedName is a name in the index.
type indexedName struct {
	Model    string          `json:"model"` // digest
	Name     string          `json:"name"`
	Versions []indexedFolder `json:"versions"` // the current one first
	Since    time.Time       `json:"since"`
}

type indexedFolder struct {
	Digest  string `json:"digest"`
	Dir     string `json:"dir,omitempty"`      // outside of the store
	AnyBase bool   `json:"any_base,omitempty"` // it may have been trained on another base
}

// path returns the folder of an adapter in the store.
func (st adapterStore) path(digest adapter.Sum) string {
	return filepath.Join(st.dir, hex.EncodeToString(digest[:]))
}

// list lists the adapters in the store.
func (st adapterStore) list() []storedAdapter {
	if st.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(st.dir)
	if err != nil {
		return nil // nothing was stored yet
	}
	var out []storedAdapter
	for _, e := range entries {
		digest, ok := adapter.ParseSum("sha256:" + e.Name())
		if !ok {
			continue
		}
		v := storedAdapter{adapterVersion: adapterVersion{digest: digest, dir: st.path(digest)}}
		for _, name := range []string{adapter.WeightsFile, adapter.ConfigFile} {
			if info, err := os.Stat(filepath.Join(v.dir, name)); err == nil {
				v.bytes, v.used = v.bytes+info.Size(), info.ModTime()
			}
		}
		out = append(out, v)
	}
	return out
}

// touch notes that an adapter was used, if it is in the store.
func (st adapterStore) touch(dir string, now time.Time) {
	if st.dir != "" && filepath.Dir(dir) == filepath.Clean(st.dir) {
		_ = os.Chtimes(filepath.Join(dir, adapter.ConfigFile), now, now) // it only makes it go earlier
	}
}

// needed returns the adapters that must stay in the store.
func (l *adapters) needed() map[adapter.Sum]bool {
	out := map[adapter.Sum]bool{}
	for key, a := range l.all {
		if a.wanted() {
			out[key.digest] = true
		}
	}
	for _, n := range l.names {
		out[n.current.digest] = true
		if len(n.earlier) > 0 {
			out[n.earlier[0].digest] = true
		}
	}
	for _, in := range l.waiting() { // for their model
		for _, v := range in.Versions[:min(len(in.Versions), 2)] {
			sum, _ := adapter.ParseSum(v.Digest) // parseIndex has checked it
			out[sum] = true
		}
	}
	return out
}

// waiting lists the names of the index whose models have not been seen yet.
func (l *adapters) waiting() []indexedName {
	var out []indexedName
	for _, in := range l.indexed {
		if !l.restored[adapterName{in.Model, in.Name}] {
			out = append(out, in)
		}
	}
	return out
}

// makeRoom makes room in the store for one more adapter of a size. What has to go is moved to a folder that the
// caller removes, since removing may take a while.
func (l *adapters) makeRoom(size int64) (doomed string, err error) {
	all, needed := l.store.list(), l.needed()
	count, bytes := len(all)+l.arriving, l.arrivingBytes
	for _, v := range all {
		bytes += v.bytes
	}
	slices.SortFunc(all, func(a, b storedAdapter) int {
		return cmp.Or(a.used.Compare(b.used), slices.Compare(a.digest[:], b.digest[:]))
	})
	var old []storedAdapter
	for _, v := range all {
		if count < maxKept && bytes+size <= l.store.limit {
			break
		}
		if !needed[v.digest] && l.damaged == nil { // a damaged index does not say what is needed
			old = append(old, v)
			count, bytes = count-1, bytes-v.bytes
		}
	}
	switch {
	case count >= maxKept:
		return "", fault.New(fault.Exhausted,
			"the folder of adapters has %d of at most %d, and all of them are in use or the last version of a name: unload some",
			count, maxKept)
	case bytes+size > l.store.limit:
		return "", fault.New(fault.Exhausted,
			"its files have %d bytes, and those in use in the folder of adapters %d of %d already", size, bytes, l.store.limit)
	case len(old) == 0:
		return "", nil
	}
	if doomed, err = os.MkdirTemp(l.store.dir, unfinished); err != nil {
		return "", storeError(err)
	}
	for _, v := range old {
		if err := os.Rename(v.dir, filepath.Join(doomed, filepath.Base(v.dir))); err != nil {
			return doomed, storeError(err)
		}
		for _, n := range l.names {
			n.earlier = slices.DeleteFunc(n.earlier, func(e adapterVersion) bool { return e.dir == v.dir })
		}
	}
	return doomed, nil
}

// commit moves the files of an adapter from a folder to their place in the store.
func (st adapterStore) commit(dir string, digest adapter.Sum) (adapterVersion, error) {
	v := adapterVersion{digest: digest, dir: st.path(digest)}
	if !adapter.Is(v.dir) {
		if err := os.Rename(dir, v.dir); err != nil {
			return v, storeError(err)
		}
		return v, nil
	}
	// The values are there already, and may be being read. The new files replace the old ones, because of what else
	// they say, such as the base. One old and one new file have the same digest, too.
	for _, name := range []string{adapter.WeightsFile, adapter.ConfigFile} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(v.dir, name)); err != nil {
			return v, storeError(err)
		}
	}
	return v, nil
}

// receive receives an adapter of which data returns the bytes of the tensors' file, piece by piece. It checks the
// adapter and calls accept, which may take the folder with its files.
func (st adapterStore) receive(
	config []byte, size uint64, data func() ([]byte, error),
	accept func(dir string, values *adapter.Adapter, outline *adapter.Outline) error,
) (err error) {
	if _, err := adapter.ParseConfig(config); err != nil {
		return err
	}
	if err := os.MkdirAll(st.dir, 0o755); err != nil {
		return storeError(err)
	}
	tmp, err := os.MkdirTemp(st.dir, unfinished)
	if err != nil {
		return storeError(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := weights.WriteFile(filepath.Join(tmp, adapter.ConfigFile), func(w io.Writer) error {
		_, err := w.Write(config)
		return err
	}); err != nil {
		return storeError(err)
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
		return err
	}
	a, err := adapter.Open(tmp)
	if err == nil {
		err = a.CheckServed()
	}
	if err != nil {
		return withoutPath(err, tmp)
	}
	o := a.Outline()
	if err := o.Check(); err != nil {
		return err
	}
	return accept(tmp, a, o)
}

// withoutPath returns an error without the temporary folder in its text.
func withoutPath(err error, dir string) error {
	text := strings.ReplaceAll(err.Error(), "open adapter "+dir+": ", "")
	return fault.New(fault.CodeOf(err), "%s", strings.ReplaceAll(text, dir+string(filepath.Separator), ""))
}

func storeError(err error) error {
	return fault.Wrap(fault.Unavailable, err, "store adapter")
}

// checkRoom returns an error if a name is new and there are too many.
func (l *adapters) checkRoom(name adapterName) error {
	if n := len(l.names) + len(l.waiting()); n >= maxNames && l.names[name] == nil {
		return fault.New(fault.Exhausted, "the router has %d names of adapters, of at most %d: unload some", n, maxNames)
	}
	return nil
}

// write writes the index of names.
func (st adapterStore) write(list []indexedName) error {
	if st.dir == "" {
		return nil
	}
	if err := os.MkdirAll(st.dir, 0o755); err != nil {
		return storeError(err)
	}
	err := weights.WriteFile(filepath.Join(st.dir, adapterIndex), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(list)
	})
	if err != nil {
		return storeError(err)
	}
	return nil
}

// clean removes what an earlier process has not received or removed whole.
func (st adapterStore) clean() {
	if st.dir == "" {
		return
	}
	left, err := filepath.Glob(filepath.Join(st.dir, unfinished+"*"))
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
		if err := adapter.CheckName(n.Name); err != nil || len(n.Versions) == 0 || len(n.Versions) > maxEarlier+1 {
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
			versions = append(versions, adapterVersion{sum, dir, v.AnyBase})
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
