package chat

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	maxHistory  = 1000     // texts that are kept
	maxQuestion = 64 << 10 // bytes of a text that is kept
)

// History holds what was asked before, also in earlier chats, if it has a file. The file has a JSON string on each
// line; lines that are none are left out.
type History struct {
	path  string // empty for no file
	texts []string
	lines int // of the file
}

// OpenHistory reads a file of earlier texts, which need not exist; an empty path means no file.
func OpenHistory(path string) (*History, error) {
	h := &History{path: path}
	if path == "" {
		return h, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.FailedPrecondition, err, "read the history of chats")
	}
	defer f.Close()
	return h, h.read(f)
}

func (h *History) read(r io.Reader) error {
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 8*maxQuestion) // a byte takes up to six in JSON
	for scan.Scan() {
		h.lines++
		var text string
		if json.Unmarshal(scan.Bytes(), &text) == nil && text != "" {
			h.keep(text)
		}
	}
	if err := scan.Err(); err != nil {
		return fault.Wrap(fault.DataLoss, err, "read the history of chats %s: delete it to begin another one", h.path)
	}
	return nil
}

// Texts returns the earlier texts, the latest last.
func (h *History) Texts() []string { return h.texts }

// keep keeps a text as the latest one.
func (h *History) keep(text string) {
	if n := len(h.texts); n > 0 && h.texts[n-1] == text {
		return
	}
	h.texts = append(h.texts, text)
	if extra := len(h.texts) - maxHistory; extra > 0 {
		h.texts = h.texts[extra:]
	}
}

// Add adds a text, to the file as well. Several chats may add to one file.
func (h *History) Add(text string) error {
	if text == "" || len(text) > maxQuestion || len(h.texts) > 0 && h.texts[len(h.texts)-1] == text {
		return nil
	}
	h.keep(text)
	if h.path == "" {
		return nil
	}
	err := h.append(text)
	if err == nil && h.lines >= 2*maxHistory {
		err = h.rewrite()
	}
	if err != nil {
		return fault.Wrap(fault.FailedPrecondition, err, "write the history of chats")
	}
	return nil
}

func (h *History) append(text string) error {
	if err := os.MkdirAll(filepath.Dir(h.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(h.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	h.lines++
	return errors.Join(json.NewEncoder(f).Encode(text), f.Close())
}

// rewrite leaves only the latest texts in the file.
func (h *History) rewrite() error {
	f, err := os.CreateTemp(filepath.Dir(h.path), ".history-*")
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, text := range h.texts {
		if err = json.NewEncoder(w).Encode(text); err != nil {
			break
		}
	}
	if err = errors.Join(err, w.Flush(), f.Close()); err == nil {
		err = os.Rename(f.Name(), h.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	h.lines = len(h.texts)
	return nil
}
