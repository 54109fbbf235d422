package ptxsim

import (
	"encoding/binary"
	"fmt"
	"math"
	"sort"
	"sync"
)

// Module is loaded PTX.
type Module struct {
	d       *Device
	src     *source
	kernels map[string]*kernel
	consts  []byte
	globals []uint64 // allocations of the module's variables
}

// Load parses, checks and compiles a module, and allocates its global variables. Errors of the source are of type
// *SourceError.
func (d *Device) Load(ptx string) (*Module, error) {
	src, err := parse(ptx)
	if err != nil {
		return nil, err
	}
	m := &Module{d: d, src: src, kernels: map[string]*kernel{}}
	for _, v := range src.vars {
		if v.space != spaceGlobal {
			continue
		}
		addr, err := d.Alloc(v.size)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", v.name, err)
		}
		m.globals = append(m.globals, addr)
		v.addr = addr
		data, err := d.Bytes(addr, v.size)
		if err != nil {
			return nil, err
		}
		clear(data)
		copy(data, v.init)
	}
	if err := m.build(); err != nil {
		m.Unload()
		return nil, err
	}
	return m, nil
}

// build places the constants and compiles the kernels.
func (m *Module) build() error {
	for _, v := range m.src.vars {
		if v.space != spaceConst {
			continue
		}
		off := (len(m.consts) + v.align - 1) / v.align * v.align
		if off+v.size > MaxConst {
			return &SourceError{Line: v.line, Text: fmt.Sprintf("constants are over %d bytes", MaxConst)}
		}
		v.addr = uint64(off)
		m.consts = append(m.consts, make([]byte, off+v.size-len(m.consts))...)
		copy(m.consts[off:], v.init)
	}
	for _, fn := range m.src.funcs {
		k, err := m.compile(fn)
		if err != nil {
			return err
		}
		m.kernels[fn.name] = k
	}
	return nil
}

// Unload frees the global variables of the module, which must not be used afterwards.
func (m *Module) Unload() {
	for _, a := range m.globals {
		_ = m.d.Free(a) // each is an allocation of ours
	}
	m.globals = nil
}

// Target returns the first name of the .target directive, such as sm_80.
func (m *Module) Target() string { return m.src.target }

// Kernels returns the names of the kernels in order.
func (m *Module) Kernels() []string {
	var out []string
	for name := range m.kernels {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

// Info describes a kernel.
type Info struct {
	Params     int  // number of parameters
	Static     int  // bytes of static shared memory
	Dynamic    bool // it declares dynamic shared memory
	Local      int  // bytes of local memory of a thread
	MaxThreads int  // of a block
}

// Kernel describes a kernel.
func (m *Module) Kernel(name string) (Info, error) {
	k := m.kernels[name]
	if k == nil {
		return Info{}, fmt.Errorf("kernel %q: %w", name, ErrNoKernel)
	}
	info := Info{Params: len(k.fn.params), Static: k.static, Dynamic: k.extern, Local: k.local, MaxThreads: MaxThreads}
	if n := k.fn.ntid; n[0] > 0 {
		info.MaxThreads = n[0] * n[1] * n[2]
	} else if k.fn.maxtid > 0 {
		info.MaxThreads = min(k.fn.maxtid, MaxThreads)
	}
	return info, nil
}

// Global returns the address and the size of a global variable of the module.
func (m *Module) Global(name string) (addr uint64, bytes int, err error) {
	for _, v := range m.src.vars {
		if v.name == name && v.space == spaceGlobal {
			return v.addr, v.size, nil
		}
	}
	return 0, 0, fmt.Errorf("variable %q: %w", name, ErrAddress)
}

// Launch runs a kernel and returns when it has ended. Grid and block are counts in x, y and z; sharedBytes is the
// dynamic shared memory. An argument has the size of its parameter; it is a float if the parameter is, and an integer
// if the parameter is, of either sign; parameters of bits take both, and arrays of bytes take []byte. Errors of the
// run are of type *Fault.
func (m *Module) Launch(kernel string, grid, block [3]int, sharedBytes int, args ...any) error {
	k := m.kernels[kernel]
	if k == nil {
		return fmt.Errorf("kernel %q: %w", kernel, ErrNoKernel)
	}
	l := &launch{m: m, k: k, shape: shape{grid: grid, block: block}, table: m.d.snapshot(), steps: m.d.opt.Steps}
	if err := l.check(sharedBytes); err != nil {
		return err
	}
	if err := l.arguments(args); err != nil {
		return err
	}
	if f := l.run(); f != nil {
		return f
	}
	return nil
}

// check checks the shape.
func (l *launch) check(dynamic int) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("kernel %s: %s: %w", l.k.fn.name, fmt.Sprintf(format, args...), ErrShape)
	}
	g, b := l.shape.grid, l.shape.block
	for i, limit := range [3]int{math.MaxInt32, 65535, 65535} {
		if g[i] < 1 || g[i] > limit {
			return bad("grid %v", g)
		}
	}
	if g[0] > math.MaxInt32/g[1]/g[2] {
		return bad("grid %v has more than %d blocks", g, math.MaxInt32)
	}
	for i, limit := range [3]int{MaxThreads, MaxThreads, 64} {
		if b[i] < 1 || b[i] > limit {
			return bad("block %v", b)
		}
	}
	info, err := l.m.Kernel(l.k.fn.name)
	if err != nil {
		return err
	}
	if n := b[0] * b[1] * b[2]; n > info.MaxThreads {
		return bad("block %v has more than %d threads", b, info.MaxThreads)
	}
	if n := l.k.fn.ntid; n[0] > 0 && n != b {
		return bad("block %v is not the required %v", b, n)
	}
	if dynamic < 0 || dynamic > 0 && !l.k.extern {
		return bad("%d bytes of dynamic shared memory", dynamic)
	}
	l.shared = l.k.static
	if dynamic > 0 {
		l.shared = l.k.dynamic + dynamic
	}
	if l.shared > l.m.d.opt.Shared {
		return bad("%d bytes of shared memory are more than %d", l.shared, l.m.d.opt.Shared)
	}
	return nil
}

// arguments encodes the arguments.
func (l *launch) arguments(args []any) error {
	ps := l.k.fn.params
	if len(args) != len(ps) {
		return fmt.Errorf("kernel %s: %d arguments for %d parameters: %w", l.k.fn.name, len(args), len(ps), ErrArguments)
	}
	for i, p := range ps {
		l.params = append(l.params, make([]byte, int(p.addr)+p.size-len(l.params))...)
		to := l.params[p.addr:]
		v, size, float := uint64(0), 0, false
		switch a := args[i].(type) {
		case uint64:
			v, size = a, 8
		case int64:
			v, size = uint64(a), 8
		case uint32:
			v, size = uint64(a), 4
		case int32:
			v, size = uint64(a), 4
		case uint16:
			v, size = uint64(a), 2
		case int16:
			v, size = uint64(a), 2
		case uint8:
			v, size = uint64(a), 1
		case float32:
			v, size, float = uint64(math.Float32bits(a)), 4, true
		case float64:
			v, size, float = math.Float64bits(a), 8, true
		case []byte:
			if p.count == 0 || len(a) != p.size {
				return l.mismatch(i, p, args[i])
			}
			copy(to, a)
			continue
		}
		if size != p.size || p.count != 0 || p.typ.class() != classBits && float != (p.typ.class() == classFloat) {
			return l.mismatch(i, p, args[i])
		}
		copy(to, binary.LittleEndian.AppendUint64(nil, v)[:size])
	}
	return nil
}

func (l *launch) mismatch(i int, p *variable, arg any) error {
	array := ""
	if p.count > 0 {
		array = fmt.Sprintf(" [%d]", p.count)
	}
	return fmt.Errorf("kernel %s: argument %d is a %T, and parameter %s is .%s%s: %w", l.k.fn.name, i, arg, p.name,
		p.typ, array, ErrArguments)
}

// run hands the blocks to the workers in the order of their numbers, and enters each in the ledger in that order. The
// fault that it returns is that of the first block with one: all blocks before it have run.
func (l *launch) run() *Fault {
	total := l.shape.grid[0] * l.shape.grid[1] * l.shape.grid[2]
	workers := min(l.m.d.opt.Workers, total)
	if l.k.atomics {
		workers = 1 // the order of atomic operations is that of the blocks
	}
	var (
		mu    sync.Mutex
		turn  = sync.NewCond(&mu)
		next  int // block to run
		done  int // blocks that are entered
		steps uint64
		fault *Fault
		book  = ledger{pages: map[uint64]*ledgerPage{}}
	)
	work := func() {
		b := l.m.d.borrow()
		defer l.m.d.giveBack(b)
		for {
			mu.Lock()
			if next == total || fault != nil {
				mu.Unlock()
				return
			}
			number := next
			next++
			mu.Unlock()
			f := b.run(l, number)
			mu.Lock()
			for done != number {
				turn.Wait()
			}
			if fault == nil && total > 1 {
				fault = book.enter(b)
			}
			if fault == nil {
				fault = f
			}
			if steps += b.steps; fault == nil && steps > l.steps {
				fault = &Fault{Check: CheckSteps, Kernel: l.k.fn.name, Line: l.k.fn.line, Block: b.index,
					Text: fmt.Sprintf("the launch executed more than %d warp instructions", l.steps)}
			}
			done++
			turn.Broadcast()
			mu.Unlock()
			b.endPages()
		}
	}
	if workers == 1 {
		work()
		return fault
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(work)
	}
	wg.Wait()
	return fault
}
