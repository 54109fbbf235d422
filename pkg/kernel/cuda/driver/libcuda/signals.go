//go:build cuda && linux && (amd64 || arm64)

package libcuda

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"
)

// signals is the number of signals of linux.
const signals = 64

// action is the kernel's struct sigaction.
type action struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// readAction returns what a signal does now.
func readAction(signal int) (a action, err error) {
	_, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(signal), 0, uintptr(unsafe.Pointer(&a)),
		unsafe.Sizeof(a.mask), 0, 0)
	if e != 0 {
		return a, fmt.Errorf("read the handler of signal %d: %w", signal, e)
	}
	return a, nil
}

// keepSignals runs f and puts back what signals do.
func keepSignals(f func() error) error {
	var before [signals + 1]action
	for s := 1; s <= signals; s++ {
		var err error
		if before[s], err = readAction(s); err != nil {
			return err
		}
	}
	err := f()
	for s := 1; s <= signals; s++ {
		after, e := readAction(s)
		if e == nil && after != before[s] {
			_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(s),
				uintptr(unsafe.Pointer(&before[s])), 0, unsafe.Sizeof(after.mask), 0, 0)
			if errno != 0 {
				e = fmt.Errorf("put back the handler of signal %d: %w", s, errno)
			}
		}
		err = errors.Join(err, e)
	}
	return err
}
