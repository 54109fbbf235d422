package checkpoint

import (
	"errors"
	"syscall"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// codeOf returns the code of a failed write: Exhausted if the disk or a quota is full.
func codeOf(err error) fault.Code {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		return fault.Exhausted
	}
	return fault.CodeOf(err)
}
