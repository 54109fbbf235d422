package checkpoint

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// DamageError says where a checkpoint is damaged.
type DamageError struct {
	File   string // in the checkpoint's folder
	Tensor string // "kind name", or empty if the damage is not in a tensor
	Offset int64  // in the file: of the damaged tensor, or of the damaged part of the header
	Msg    string
}

// Error names the file, the tensor and the offset.
func (e *DamageError) Error() string {
	if e.Tensor == "" {
		return fmt.Sprintf("read %s: offset %d: %s", e.File, e.Offset, e.Msg)
	}
	return fmt.Sprintf("read %s: %s at offset %d: %s", e.File, e.Tensor, e.Offset, e.Msg)
}

// FaultCode implements fault.Coder.
func (e *DamageError) FaultCode() fault.Code { return fault.DataLoss }

func damage(file, tensor string, offset int64, format string, args ...any) *DamageError {
	return &DamageError{File: file, Tensor: tensor, Offset: offset, Msg: fmt.Sprintf(format, args...)}
}
