package weights

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Digest names a model by its content: "sha256:" and the hash of a file, or, for a
// Hugging Face folder, of the names, sizes and contents of the files that decide
// what the model says.
func Digest(path string) (string, error) {
	h := sha256.New()
	stat, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !stat.IsDir() {
		if err := hashFile(h, path); err != nil {
			return "", err
		}
		return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
	}
	files, err := filepath.Glob(filepath.Join(path, "*.safetensors"))
	if err != nil {
		return "", err
	}
	for _, name := range []string{"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", indexFile} {
		file := filepath.Join(path, name)
		if _, err := os.Stat(file); err == nil {
			files = append(files, file)
		}
	}
	if len(files) == 0 {
		return "", &FormatError{File: path, Offset: -1, Field: "folder", Msg: "it holds no model files"}
	}
	slices.Sort(files)
	for _, file := range files {
		stat, err := os.Stat(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s\x00", filepath.Base(file))
		if err := binary.Write(h, binary.LittleEndian, stat.Size()); err != nil {
			return "", err
		}
		if err := hashFile(h, file); err != nil {
			return "", err
		}
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

func hashFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
