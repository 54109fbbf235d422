package trainer

import (
	"fmt"
	"os"
	"path/filepath"
)

// share is what stages need to find the folder of a run.
type share struct {
	folder string // inside the folder of runs; empty if the run is elsewhere
	token  string
}

// newShare puts a token into the folder of a run. The returned function removes it.
func newShare(runs, dir string) (share, func() error, error) {
	none := func() error { return nil }
	folder, err := folderIn(runs, dir)
	if err != nil || folder == "" {
		return share{}, none, err
	}
	s := share{folder: folder, token: fmt.Sprintf(".lamina-%x", randomBytes(16))}
	path := filepath.Join(dir, s.token)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return share{}, none, err
	}
	return s, func() error { return os.Remove(path) }, nil
}

// folderIn returns the path of dir inside runs, or an empty one if it is not inside.
func folderIn(runs, dir string) (string, error) {
	from, err := filepath.Abs(runs)
	if err != nil {
		return "", err
	}
	to, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(from, to)
	if err != nil || !filepath.IsLocal(rel) {
		return "", nil //nolint:nilerr // on another volume
	}
	return filepath.ToSlash(rel), nil
}
