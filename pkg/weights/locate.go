package weights

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Format says how a model's tensors are stored.
type Format int

// Formats of a model.
const (
	FormatUnspecified Format = iota
	FormatGGUF               // a GGUF file, or a GGUF file split into parts
	FormatSafetensors        // a safetensors file, or a Hugging Face folder
)

// Location says where a model's tensors are.
type Location struct {
	Format Format
	// Path is the file or folder that the caller named. For a folder with one GGUF model, it is
	// that model's file or first part.
	Path string
}

// AmbiguousError reports a folder that holds several GGUF models.
type AmbiguousError struct {
	Dir    string
	Models []string // file names, sorted; a split model is named by its first part
}

// Error lists the models.
func (e *AmbiguousError) Error() string {
	shown := make([]string, 0, len(e.Models))
	for _, m := range e.Models {
		shown = append(shown, clip(m))
	}
	return fmt.Sprintf("open %s: the folder holds %d GGUF models, name one of them: %s",
		e.Dir, len(e.Models), strings.Join(shown, ", "))
}

// FaultCode returns Invalid.
func (e *AmbiguousError) FaultCode() fault.Code { return fault.Invalid }

// PartError reports a missing part of a split GGUF file.
type PartError struct {
	File        string // the missing file
	Part, Count int    // from 1
}

// Error names the missing file.
func (e *PartError) Error() string {
	return fmt.Sprintf("open %s: part %d of %d of the split GGUF file is missing", e.File, e.Part, e.Count)
}

// FaultCode returns NotFound.
func (e *PartError) FaultCode() fault.Code { return fault.NotFound }

// Unwrap returns fs.ErrNotExist.
func (e *PartError) Unwrap() error { return fs.ErrNotExist }

// Locate finds out whether a path is a GGUF model or a safetensors model. A file is recognised by
// its magic. A folder with safetensors files is a Hugging Face folder, whatever else it contains. A
// folder with GGUF files but no safetensors files must contain one model; otherwise the error is an
// *AmbiguousError. Files of a vision projector (mmproj) do not count as models. A folder with
// neither kind of file counts as a Hugging Face folder.
func Locate(path string) (Location, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return Location{}, err
	}
	if !stat.IsDir() {
		gguf, err := hasMagic(path)
		if err != nil {
			return Location{}, err
		}
		if gguf {
			return Location{Format: FormatGGUF, Path: path}, nil
		}
		return Location{Format: FormatSafetensors, Path: path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return Location{}, err
	}
	var models []string
	seen := map[string]bool{}
	for _, e := range entries { // sorted, so that the first part of a split model comes first
		name := e.Name()
		switch filepath.Ext(name) {
		case ".safetensors":
			return Location{Format: FormatSafetensors, Path: path}, nil
		case ".gguf":
		default:
			continue
		}
		if e.IsDir() || strings.Contains(strings.ToLower(name), "mmproj") {
			continue
		}
		set := name
		if prefix, _, count, ok := splitName(name); ok {
			set = fmt.Sprintf("%s of %d", prefix, count)
		}
		if !seen[set] {
			seen[set] = true
			models = append(models, name)
		}
	}
	switch len(models) {
	case 0:
		return Location{Format: FormatSafetensors, Path: path}, nil
	case 1:
		return Location{Format: FormatGGUF, Path: filepath.Join(path, models[0])}, nil
	}
	return Location{}, &AmbiguousError{Dir: path, Models: models}
}

// hasMagic reports whether a path is a regular file that begins with GGUF's magic.
func hasMagic(path string) (bool, error) {
	// Check before opening: opening a pipe waits for its other end.
	if stat, err := os.Stat(path); err != nil || !stat.Mode().IsRegular() {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var magic [4]byte
	n, _ := f.ReadAt(magic[:], 0)
	return string(magic[:n]) == ggufMagic, nil
}

// ModelName returns a model's name from its path: the name of its folder, or of its file without
// ".gguf" and the number of a part.
func ModelName(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	base := filepath.Base(abs)
	if prefix, _, _, ok := splitName(base); ok {
		return prefix
	}
	return strings.TrimSuffix(base, ".gguf")
}

// splitPattern matches the names that llama.cpp's gguf-split gives to parts:
// NAME-00001-of-00003.gguf.
var splitPattern = regexp.MustCompile(`^(.+)-(\d{5})-of-(\d{5})\.gguf$`)

// splitName parses the name of a part. part is from 1 to count.
func splitName(base string) (prefix string, part, count int, ok bool) {
	m := splitPattern.FindStringSubmatch(base)
	if m == nil {
		return "", 0, 0, false
	}
	part, _ = strconv.Atoi(m[2])
	count, _ = strconv.Atoi(m[3])
	return m[1], part, count, part >= 1 && part <= count
}

// partName is the reverse of splitName.
func partName(prefix string, part, count int) string {
	return fmt.Sprintf("%s-%05d-of-%05d.gguf", prefix, part, count)
}

// partFiles lists the files of a split model, given the path of one of them. If the path is not the
// name of a part, it returns just the path.
func partFiles(path string) []string {
	prefix, _, count, ok := splitName(filepath.Base(path))
	if !ok {
		return []string{path}
	}
	files := make([]string, count)
	for i := range files {
		files[i] = filepath.Join(filepath.Dir(path), partName(prefix, i+1, count))
	}
	return files
}

// Files lists the files that make up a model, sorted: the one file, all parts of a split GGUF file,
// or the files of a Hugging Face folder that determine the model's output.
func Files(path string) ([]string, error) {
	at, err := Locate(path)
	if err != nil {
		return nil, err
	}
	if at.Format == FormatGGUF {
		return ggufFiles(at.Path)
	}
	if stat, err := os.Stat(path); err != nil || !stat.IsDir() {
		return []string{path}, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		switch name := e.Name(); name {
		case "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", indexFile:
			files = append(files, filepath.Join(path, name))
		default:
			if filepath.Ext(name) == ".safetensors" {
				files = append(files, filepath.Join(path, name))
			}
		}
	}
	if len(files) == 0 {
		return nil, &FormatError{File: path, Offset: -1, Field: "folder", Msg: "it holds no model files"}
	}
	return files, nil
}

// ggufFiles lists the parts of a GGUF model that exist. A file that is named like a part but has no
// other parts counts as a complete file; opening it reports what is wrong.
func ggufFiles(path string) ([]string, error) {
	all := partFiles(path)
	files := slices.DeleteFunc(slices.Clone(all), func(f string) bool {
		_, err := os.Stat(f)
		return errors.Is(err, fs.ErrNotExist)
	})
	if len(files) == len(all) {
		return files, nil
	}
	return []string{path}, nil
}
