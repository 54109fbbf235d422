package trainer

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// fromField is the field of the model that a run starts from.
const fromField = "model.from"

// paths says which files of the trainer's machine a manifest may name. A manifest may come from anybody who
// can reach the trainer, and whatever it names is read and shown in losses, samples and vocabularies.
type paths struct {
	data    string            // the folder that relative names are in
	allowed []string          // further folders, which absolute names may be in
	flag    string            // that allows them
	models  map[string]string // files and folders of models by the names that model.from may have for them
}

// newPaths returns the rule for a data folder and the allowed folders, which need not exist yet.
func newPaths(data string, allow []string) (paths, error) {
	p := paths{flag: "--allow-path"}
	for i, dir := range append([]string{data}, allow...) {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return p, fault.Wrap(fault.Invalid, err, "find folder %q", dir)
		}
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			abs = real
		}
		if i == 0 {
			p.data = abs
		} else {
			p.allowed = append(p.allowed, abs)
		}
	}
	return p, nil
}

// resolve returns the real path of a file or folder that a field of a manifest names. After symbolic links
// are followed it is inside the data folder or an allowed one.
func (p paths) resolve(field, name string) (string, error) {
	if err := p.checkName(field, name); err != nil {
		return "", err
	}
	path := name
	if !filepath.IsAbs(name) {
		path = filepath.Join(p.data, name)
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if at, ok := p.models[name]; ok && field == fromField {
			return at, nil
		}
		// Only inside the folders does the client learn what exists.
		if _, err := p.resolveNew(field, name); err == nil {
			return "", p.missing(field, name)
		}
	}
	if err != nil || !p.holds(real) {
		return "", fault.Field(field, "%q leads out of the trainer's data folder; see %s", name, p.flag)
	}
	stat, err := os.Stat(real)
	if err != nil {
		return "", fault.Field(field, "%q: %v", name, reason(err))
	}
	if !stat.IsDir() && !stat.Mode().IsRegular() { // a pipe or a device would never end
		return "", fault.Field(field, "%q is neither a file nor a folder", name)
	}
	return real, nil
}

// missing returns the error for a name inside the folders that nothing has. It says which folder that is, since the
// data folder is often the default one, which nobody has named.
func (p paths) missing(field, name string) error {
	msg := fmt.Sprintf("%q does not exist", name)
	if !filepath.IsAbs(name) {
		msg += " in the trainer's data folder, " + p.data
	}
	if field == fromField && len(p.models) > 0 {
		msg += fmt.Sprintf(", and is not the name of a model that is served here: %s",
			strings.Join(slices.Sorted(maps.Keys(p.models)), ", "))
	}
	return &fault.Error{Code: fault.NotFound, Field: field, Msg: msg}
}

// resolveNew does the same for a folder that will be created: its parents may be missing too.
func (p paths) resolveNew(field, name string) (string, error) {
	if err := p.checkName(field, name); err != nil {
		return "", err
	}
	path := name
	if !filepath.IsAbs(name) {
		path = filepath.Join(p.data, name)
	}
	// Of the path's parents some exist. The rest is not there, so that it has no links.
	exists, rest := path, ""
	for {
		real, err := filepath.EvalSymlinks(exists)
		if err == nil {
			path = filepath.Join(real, rest)
			break
		}
		if _, err := os.Lstat(exists); err == nil { // a link to nothing
			return "", fault.Field(field, "%q: a symbolic link in it leads nowhere", name)
		}
		parent := filepath.Dir(exists)
		if parent == exists {
			return "", fault.Field(field, "%q: %v", name, reason(err))
		}
		exists, rest = parent, filepath.Join(filepath.Base(exists), rest)
	}
	if !p.holds(path) {
		return "", fault.Field(field, "%q leads out of the trainer's folders; see %s", name, p.flag)
	}
	return path, nil
}

// checkName refuses names that are wrong whatever the file system holds.
func (p paths) checkName(field, name string) error {
	switch {
	case name == "":
		return fault.Field(field, "want the name of a file or folder")
	case len(name) > 4096:
		return fault.Field(field, "a name of %d bytes is longer than 4096", len(name))
	case strings.ContainsRune(name, 0):
		return fault.Field(field, "%q contains a zero byte", name)
	case filepath.IsAbs(name):
		if clean := filepath.Clean(name); clean != name && clean+"/" != name {
			return fault.Field(field, "%q: want an absolute path without '.', '..' and double slashes", name)
		}
		if !slices.ContainsFunc(p.allowed, func(dir string) bool { return within(dir, name) }) {
			return fault.Field(field, "%q is absolute; want a name inside the trainer's folder, or start the "+
				"trainer with %s", name, p.flag)
		}
	case slices.Contains(strings.Split(filepath.ToSlash(name), "/"), ".."):
		if len(p.allowed) == 0 {
			return fault.Field(field, "%q contains '..'; want a name inside the trainer's data folder", name)
		}
	}
	return nil
}

// holds reports whether a real path is inside one of the folders.
func (p paths) holds(real string) bool {
	return within(p.data, real) || slices.ContainsFunc(p.allowed, func(dir string) bool { return within(dir, real) })
}

// within reports whether a path is a folder or inside it. Both are clean and absolute.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// reason returns the cause of a file error without its path, which may say more about the trainer's
// machine than a client should know.
func reason(err error) error {
	if p, ok := err.(*os.PathError); ok { //nolint:errorlint // an outer error has no path to hide
		return p.Err
	}
	return err
}
