package weights

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", err
	}
	var files []string // sorted, as the folder's entries are
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
		return "", &FormatError{File: path, Offset: -1, Field: "folder", Msg: "it holds no model files"}
	}
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
