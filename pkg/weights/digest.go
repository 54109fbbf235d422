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

// Digest names a model by its content: "sha256:" and the hash of its file or, for a
// model of several files (Files lists them), of their names, sizes and contents.
// Any part of a split GGUF file, and a folder that holds one, give the same digest.
func Digest(path string) (string, error) {
	h := sha256.New()
	files, err := Files(path)
	if err != nil {
		return "", err
	}
	if at, err := Locate(path); err != nil {
		return "", err
	} else if len(files) == 1 && (files[0] == path || at.Format == FormatGGUF) {
		if err := hashFile(h, files[0]); err != nil {
			return "", err
		}
		return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
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
