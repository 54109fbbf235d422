package twin

import (
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/ptxsim"
)

// Simulated returns a machine that runs PTX in an interpreter.
func Simulated() Machine { return simulated{ptxsim.NewDevice(ptxsim.Options{})} }

// simulated is a device of ptxsim.
type simulated struct{ d *ptxsim.Device }

// Alloc allocates memory.
func (s simulated) Alloc(n int64) (uint64, error) { return s.d.Alloc(int(n)) }

// Free frees memory.
func (s simulated) Free(a uint64) error { return s.d.Free(a) }

// Bytes returns memory.
func (s simulated) Bytes(a uint64, n int64) ([]byte, error) { return s.d.Bytes(a, int(n)) }

// Load reads a module.
func (s simulated) Load(text string) (Program, error) {
	m, err := s.d.Load(text)
	if err != nil {
		return nil, err
	}
	return program{m}, nil
}

// program is a module of ptxsim.
type program struct{ m *ptxsim.Module }

// Has reports whether there is a kernel.
func (p program) Has(name string) bool {
	_, err := p.m.Kernel(name)
	return err == nil
}

// Launch runs a kernel.
func (p program) Launch(name string, l driver.Launch, args []any) error {
	for i, a := range args {
		if a, ok := a.(driver.Address); ok {
			args[i] = uint64(a)
		}
	}
	size := func(d driver.Dim) [3]int { return [3]int{int(d.X), int(d.Y), int(d.Z)} }
	return p.m.Launch(name, size(l.Grid), size(l.Block), l.Shared, args...)
}
