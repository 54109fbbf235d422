package driver

import (
	"errors"
	"fmt"
	"time"
)

// NoDriverError says that the driver's library cannot be opened.
type NoDriverError struct {
	Library string
	Err     error
}

func (e *NoDriverError) Error() string {
	return fmt.Sprintf("no NVIDIA driver: open %s: %v", e.Library, e.Err)
}

func (e *NoDriverError) Unwrap() error { return e.Err }

// TooOldError says that the driver supports only an older CUDA.
type TooOldError struct{ Have, Want int }

func (e *TooOldError) Error() string {
	return fmt.Sprintf("the NVIDIA driver is too old: it supports CUDA %s, want %s or newer", version(e.Have),
		version(e.Want))
}

// version writes a version as people do.
func version(v int) string { return fmt.Sprintf("%d.%d", v/1000, v%1000/10) }

// NoDeviceError says that there is no device of a number.
type NoDeviceError struct{ Number, Count int }

func (e *NoDeviceError) Error() string {
	switch e.Count {
	case 0:
		return "no such device: the NVIDIA driver finds none"
	case 1:
		return "no such device: the only one is cuda:0"
	}
	return fmt.Sprintf("no such device: there are cuda:0 to cuda:%d", e.Count-1)
}

// OutOfMemoryError says that memory is short. Kind is "device" or "pinned host"; for pinned memory Free and Total
// are 0.
type OutOfMemoryError struct {
	Kind                string
	Wanted, Free, Total int64
}

func (e *OutOfMemoryError) Error() string {
	if e.Total == 0 {
		return fmt.Sprintf("out of %s memory: want %d bytes", e.Kind, e.Wanted)
	}
	return fmt.Sprintf("out of %s memory: want %d bytes, %d of %d are free", e.Kind, e.Wanted, e.Free, e.Total)
}

// CallError is a failure that a call of the driver returned. Failures of kernels come with a later call, and no
// call succeeds after them.
type CallError struct {
	Call string
	Code int
	Name string // such as CUDA_ERROR_ILLEGAL_ADDRESS
	Text string
}

func (e *CallError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("%s: %s (%d)", e.Call, e.Name, e.Code)
	}
	return fmt.Sprintf("%s: %s (%d): %s", e.Call, e.Name, e.Code, e.Text)
}

// ShareError says why the driver does not share memory between processes. It does not unwrap to the error of the call:
// the driver answers here with codes that mean a dead context elsewhere, and this context is none. If it is dead, the
// next call says so.
type ShareError struct{ Err error }

func (e *ShareError) Error() string { return fmt.Sprintf("share memory between processes: %v", e.Err) }

// HungError says that a device has not finished its work in time.
type HungError struct{ Limit time.Duration }

func (e *HungError) Error() string {
	return fmt.Sprintf("the device hangs: it has not finished its work in %v", e.Limit)
}

// LostError says that a device is of no use any more to this process, and why.
type LostError struct{ Err error }

func (e *LostError) Error() string { return fmt.Sprintf("the device is lost: %v", e.Err) }

func (e *LostError) Unwrap() error { return e.Err }

// sticky are the codes after which no call on the context succeeds.
var sticky = map[int]bool{
	4:   true, // CUDA_ERROR_DEINITIALIZED
	201: true, // CUDA_ERROR_INVALID_CONTEXT
	214: true, // CUDA_ERROR_ECC_UNCORRECTABLE
	220: true, // CUDA_ERROR_NVLINK_UNCORRECTABLE
	226: true, // CUDA_ERROR_CONTAINED
	700: true, // CUDA_ERROR_ILLEGAL_ADDRESS
	702: true, // CUDA_ERROR_LAUNCH_TIMEOUT
	709: true, // CUDA_ERROR_CONTEXT_IS_DESTROYED
	710: true, // CUDA_ERROR_ASSERT
	714: true, // CUDA_ERROR_HARDWARE_STACK_ERROR
	715: true, // CUDA_ERROR_ILLEGAL_INSTRUCTION
	716: true, // CUDA_ERROR_MISALIGNED_ADDRESS
	717: true, // CUDA_ERROR_INVALID_ADDRESS_SPACE
	718: true, // CUDA_ERROR_INVALID_PC
	719: true, // CUDA_ERROR_LAUNCH_FAILED
	721: true, // CUDA_ERROR_EXTERNAL_DEVICE
	999: true, // CUDA_ERROR_UNKNOWN
}

// Sticky reports whether an error is a failure of the driver after which the context is dead.
func Sticky(err error) bool {
	call := (*CallError)(nil)
	return errors.As(err, &call) && sticky[call.Code]
}

// Check returns an error unless a driver is new enough and has a device.
func Check(d Driver, number int) error {
	if v := d.Version(); v < Oldest {
		return &TooOldError{Have: v, Want: Oldest}
	}
	if n := d.Count(); number < 0 || number >= n {
		return &NoDeviceError{Number: number, Count: n}
	}
	return nil
}
