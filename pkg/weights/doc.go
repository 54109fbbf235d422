// Package weights reads model files: GGUF (versions 2 and 3) and Hugging Face's safetensors, whole
// or sharded. It checks every count, size and offset against the file's size before it allocates or
// slices. Files are memory-mapped, and a tensor's bytes are read only when they are used, so a
// shard reads only its own layers. A model is one file, a folder, or a GGUF file split into parts.
// Locate finds out which. The package writes safetensors, the format of checkpoints and trained
// models.
//
// It does not know architectures (pkg/model) or what the bytes mean (pkg/tensor).
//
// Model files are untrusted. A malformed one is a *FormatError that names the file,
// the offset and the field. A decoded header takes at most the file's size plus
// 32 MiB of memory, and two tensors never share bytes. As with any mapped file, the
// file must not shrink while it is open.
//
// A Source is safe for concurrent reads. Data views are read-only and valid until
// Close; the caller must not call Close while a view is in use.
package weights

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Info describes a stored tensor.
type Info struct {
	Name  string
	DType tensor.DType
	Shape []int // outermost first; a GGUF file lists them innermost first
	Bytes int64
}

// Elements returns the number of elements, the product of the shape.
func (i Info) Elements() int {
	n := 1
	for _, d := range i.Shape {
		n *= d
	}
	return n
}

// Source is a set of named tensors.
type Source interface {
	// Names lists the tensors, sorted.
	Names() []string
	// Info describes a tensor.
	Info(name string) (Info, bool)
	// Data returns a read-only view of a tensor's bytes, valid until Close.
	Data(name string) ([]byte, error)
	// Relax lets the operating system drop the mapped pages that were read so far.
	// Reading a tensor again loads its pages again.
	Relax()
	// Close unmaps the files.
	Close() error
}

// FormatError reports a malformed or unsupported file.
type FormatError struct {
	File        string
	Offset      int64 // into the file; -1 where it does not apply
	Field       string
	Msg         string
	Unsupported bool // well-formed, but not for this build
}

// Error names the file, the offset and the field.
func (e *FormatError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("read %s: %s: %s", e.File, e.Field, e.Msg)
	}
	return fmt.Sprintf("read %s at byte %d: %s: %s", e.File, e.Offset, e.Field, e.Msg)
}

// FaultCode returns Unimplemented for an unsupported file and DataLoss for a malformed one.
func (e *FormatError) FaultCode() fault.Code {
	if e.Unsupported {
		return fault.Unimplemented
	}
	return fault.DataLoss
}

// NotFoundError reports a tensor that a file lacks.
type NotFoundError struct{ File, Tensor string }

// Error names the file and the tensor.
func (e *NotFoundError) Error() string { return fmt.Sprintf("read %s: no tensor %q", e.File, e.Tensor) }

// FaultCode returns NotFound.
func (e *NotFoundError) FaultCode() fault.Code { return fault.NotFound }

// clip shortens and quotes a name from a file so that an error can show it.
func clip(name string) string {
	const most = 96
	if len(name) > most {
		return strconv.Quote(name[:most]) + "..."
	}
	for _, r := range name {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return strconv.Quote(name)
		}
	}
	return name
}

// headerSlack is the memory that a header may take in addition to its file's size.
const headerSlack = 32 << 20

// budget is the memory that a header may still take.
type budget int64

func newBudget(fileSize int) *budget {
	b := budget(fileSize) + headerSlack
	return &b
}

// charge takes n*each bytes from the budget. It returns false if fewer are left.
func (b *budget) charge(n, each uint64) bool {
	if left := uint64(*b); each > 0 && n > left/each {
		return false
	}
	*b -= budget(n * each)
	return true
}
