// Package weights reads model files: GGUF (versions 2 and 3) and Hugging Face's
// safetensors, whole or sharded. It checks every count, size and offset against
// the file before it allocates or slices, maps files into memory, and touches a
// tensor's bytes only when they are asked for, so a shard pays for its own layers
// alone. It writes safetensors, the format of checkpoints and trained models.
//
// It does not know architectures (pkg/model) or what the bytes mean (pkg/tensor).
//
// A malformed file is a *FormatError that names the file, the offset and the
// field. Data views stay valid until Close.
package weights

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/tensor"
)

// Info describes a stored tensor.
type Info struct {
	Name  string
	DType tensor.DType
	Shape []int // outermost first; a GGUF file lists them innermost first
	Bytes int64
}

// Elements is the product of the shape.
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
	// Data is a read-only view of a tensor's bytes, valid until Close.
	Data(name string) ([]byte, error)
	// Close unmaps the files.
	Close() error
}

// FormatError reports a malformed or unsupported file.
type FormatError struct {
	File   string
	Offset int64 // into the file; -1 where it does not apply
	Field  string
	Msg    string
}

// Error names the file, the offset and the field.
func (e *FormatError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("read %s: %s: %s", e.File, e.Field, e.Msg)
	}
	return fmt.Sprintf("read %s at byte %d: %s: %s", e.File, e.Offset, e.Field, e.Msg)
}

// NotFoundError reports a tensor that a file lacks.
type NotFoundError struct{ File, Tensor string }

// Error names the file and the tensor.
func (e *NotFoundError) Error() string { return fmt.Sprintf("read %s: no tensor %q", e.File, e.Tensor) }
