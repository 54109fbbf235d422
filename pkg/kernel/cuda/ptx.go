package cuda

import (
	"bytes"
	"compress/gzip"
	"embed"
	"errors"
	"io"
	"io/fs"
)

// The kernels are PTX text, written by pkg/kernel/cuda/gen (`make kernels`). A driver compiles them for its card.
//
//go:embed *.ptx
var texts embed.FS

// machine has the modules as machine code, which no driver has to compile, in a folder for each architecture. ptxas
// makes it (`make cubins`); texts.sha256 says of which texts, and cubins.sha256 what it made.
//
//go:embed sm_90
var machine embed.FS

// machineCode returns a module as machine code, or nil if there is none for an architecture such as sm_90.
func machineCode(architecture, module string) ([]byte, error) {
	packed, err := machine.ReadFile(architecture + "/" + module + ".cubin.gz")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// ParamType is the type of a kernel's parameter.
type ParamType uint8

// The types of parameters.
const (
	Pointer ParamType = iota + 1 // an address in the device's memory, 64 bits
	Uint32
	Float32
)

// Param is a parameter of a kernel.
type Param struct {
	Name string
	Type ParamType
}

// Kernel describes a kernel. The comment before its text in the module's file says what it computes and how the grid is
// laid out.
type Kernel struct {
	Name    string
	Module  string // the file is Module + ".ptx"
	Params  []Param
	Threads int // of a block, all in x
	Shared  int // bytes of static shared memory
}

// Kernels lists the kernels, those of a module one after the other.
func Kernels() []Kernel { return kernels }

// Text returns the PTX of a module.
func Text(module string) (string, error) {
	b, err := texts.ReadFile(module + ".ptx")
	return string(b), err
}
