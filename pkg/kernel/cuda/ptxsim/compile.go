package ptxsim

import (
	"fmt"
	"slices"
	"strings"
)

// kind says how the main loop treats an instruction.
type kind uint8

const (
	kindRun     kind = iota // run changes registers and memory
	kindBranch              // target
	kindExit                // ret and exit
	kindBarrier             // run fills in w.request
)

// inst is a compiled instruction.
type inst struct {
	kind   kind
	neg    bool
	pred   int32 // predicate register, or -1
	target int32 // of a branch
	join   int32 // where the two sides of a branch meet again
	uni    bool  // the branch is promised not to diverge
	line   int
	text   string
	run    func(w *warp, m uint32) // m is not 0
	// Registers and predicates that run reads in every lane, and those that it writes.
	srcs, psrcs, dsts, pdsts []int32
}

// fixed is a register that a launch or a block sets, and that no instruction writes.
type fixed struct {
	slot    int32
	special string    // name of a special register
	param   *variable // parameter, with off and size
	off     int
	size    int
	value   uint64
}

// kernel is a compiled kernel.
type kernel struct {
	fn      *function
	code    []inst
	slots   int // registers, with those that are fixed
	preds   int
	fixed   []fixed
	static  int  // bytes of static shared memory
	dynamic int  // offset of dynamic shared memory
	extern  bool // it declares dynamic shared memory
	local   int  // bytes of local memory of a thread
	atomics bool // it has atomic operations on global memory: its blocks run in order
	granule uint // log2 of the bytes that the race checks treat as one
}

// compiler compiles one kernel.
type compiler struct {
	m      *Module
	k      *kernel
	s      *statement
	in     *inst
	mods   []string
	consts map[uint64]int32
	named  map[string]int32
	params map[[3]int]int32
	scrap  int32 // register that takes what nobody reads, or -1
	pscrap int32
}

func (c *compiler) errorf(format string, args ...any) error {
	return &SourceError{Line: c.s.line, Instr: c.s.text, Text: fmt.Sprintf(format, args...)}
}

// compile compiles a kernel of the module, whose variables have addresses.
func (m *Module) compile(fn *function) (*kernel, error) {
	k := &kernel{fn: fn, granule: 2}
	c := &compiler{m: m, k: k, consts: map[uint64]int32{}, named: map[string]int32{}, params: map[[3]int]int32{},
		scrap: -1, pscrap: -1}
	if err := c.layout(); err != nil {
		return nil, err
	}
	k.code = make([]inst, len(fn.body), len(fn.body)+1)
	for i, s := range fn.body {
		c.s, c.in, c.mods = s, &k.code[i], slices.Clone(s.mods)
		*c.in = inst{line: s.line, text: s.text, pred: -1, neg: s.neg}
		if s.pred != nil {
			c.in.pred = c.predicate(s.pred)
		}
		op := opcodes[s.op]
		if op == nil {
			return nil, c.errorf("instruction %s is not supported", s.op)
		}
		if err := op(c); err != nil {
			return nil, err
		}
		if len(c.mods) > 0 {
			return nil, c.errorf("modifier .%s is not supported here", c.mods[0])
		}
	}
	// A kernel ends with ret or a branch, or else here.
	k.code = append(k.code, inst{kind: kindExit, pred: -1, line: lastLine(fn), text: "}"})
	k.flow()
	return k, nil
}

func lastLine(fn *function) int {
	if n := len(fn.body); n > 0 {
		return fn.body[n-1].line
	}
	return fn.line
}

// layout places the shared and local variables of the kernel, and the shared variables of the module that it names.
func (c *compiler) layout() error {
	vars := slices.Clone(c.k.fn.vars)
	named := map[*variable]bool{}
	for _, s := range c.k.fn.body {
		for i := range s.args {
			if v := s.args[i].v; v != nil {
				named[v] = true
			}
		}
	}
	for _, v := range c.m.src.vars {
		if v.space == spaceShared && named[v] {
			vars = append(vars, v)
		}
	}
	align := 16
	for _, v := range vars {
		size := &c.k.static
		limit := MaxStatic
		if v.space == spaceLocal {
			size, limit = &c.k.local, MaxLocal
		}
		if v.extern {
			c.k.extern = true
			align = max(align, v.align)
			continue
		}
		*size = (*size + v.align - 1) / v.align * v.align
		v.addr = uint64(*size)
		if *size += v.size; *size > limit {
			return &SourceError{Line: v.line, Text: fmt.Sprintf("kernel %s: variable %s ends beyond %d bytes",
				c.k.fn.name, v.name, limit)}
		}
	}
	c.k.dynamic = (c.k.static + align - 1) / align * align
	for _, v := range vars {
		if v.extern {
			v.addr = uint64(c.k.dynamic)
		}
	}
	c.k.local = (c.k.local + 15) / 16 * 16
	return nil
}

// has removes a modifier and reports whether it was there.
func (c *compiler) has(mod string) bool {
	if i := slices.Index(c.mods, mod); i >= 0 {
		c.mods = slices.Delete(c.mods, i, i+1)
		return true
	}
	return false
}

// one removes the first modifier that is among the choices, and returns it, or "".
func (c *compiler) one(choices ...string) string {
	for i, m := range c.mods {
		if slices.Contains(choices, m) {
			c.mods = slices.Delete(c.mods, i, i+1)
			return m
		}
	}
	return ""
}

// typ removes the first modifier that is a type, which must be one of those listed, if any are.
func (c *compiler) typ(allowed ...Type) (Type, error) {
	for i, m := range c.mods {
		if t, ok := typeNames[m]; ok {
			if len(allowed) > 0 && !slices.Contains(allowed, t) {
				return noType, c.errorf("type .%s is not supported here", t)
			}
			c.mods = slices.Delete(c.mods, i, i+1)
			return t, nil
		}
	}
	return noType, c.errorf("instruction has no type")
}

// count checks the number of operands.
func (c *compiler) count(n ...int) error {
	if slices.Contains(n, len(c.s.args)) {
		return nil
	}
	return c.errorf("%d operands where %s belong", len(c.s.args),
		strings.Trim(strings.ReplaceAll(fmt.Sprint(n), " ", " or "), "[]"))
}

func (c *compiler) slot() int32 {
	c.k.slots++
	return int32(c.k.slots - 1)
}

func (c *compiler) predicate(r *register) int32 {
	if r.slot < 0 {
		r.slot = int32(c.k.preds)
		c.k.preds++
	}
	return r.slot
}

func (c *compiler) register(r *register) int32 {
	if r.slot < 0 {
		r.slot = c.slot()
	}
	return r.slot
}

// constant returns a register that holds v in every lane.
func (c *compiler) constant(v uint64) int32 {
	s, ok := c.consts[v]
	if !ok {
		s = c.slot()
		c.consts[v] = s
		c.k.fixed = append(c.k.fixed, fixed{slot: s, value: v})
	}
	return s
}

// sameSize is the rule of operands of most instructions; wider that of ld, st and cvt, whose registers may be wider
// than the type.
func sameSize(t, r Type) bool { return t.accepts(r) }

func wider(t, r Type) bool {
	if r == Pred {
		return false
	}
	if t.accepts(r) {
		return true
	}
	return r.bits() > t.bits() && t.class() != classFloat && r.class() != classFloat
}

// source returns the register of a source operand without adding it to the registers that the main loop checks.
func (c *compiler) source(o *operand, t Type, ok func(t, r Type) bool) (int32, error) {
	switch o.kind {
	case operandRegister:
		if !ok(t, o.reg.typ) {
			return 0, c.errorf("register %s has type .%s where .%s belongs", o.name, o.reg.typ, t)
		}
		return c.register(o.reg), nil
	case operandSpecial:
		if !ok(t, U32) && !ok(t, specialType(o.name)) {
			return 0, c.errorf("register %s has type .%s where .%s belongs", o.name, specialType(o.name), t)
		}
		s, found := c.named[o.name]
		if !found {
			s = c.slot()
			c.named[o.name] = s
			c.k.fixed = append(c.k.fixed, fixed{slot: s, special: o.name})
		}
		return s, nil
	case operandInt, operandFloat:
		v, err := o.bits(t)
		if err != nil {
			return 0, c.errorf("%v", err)
		}
		return c.constant(v), nil
	case operandSymbol:
		if t.bits() < 32 || t.class() == classFloat {
			return 0, c.errorf("address of %s for type .%s", o.name, t)
		}
		if o.v.space == spaceGlobal && t.bits() < 64 {
			return 0, c.errorf("address of global variable %s for type .%s", o.name, t)
		}
		return c.constant((o.v.addr + uint64(o.off)) & t.mask()), nil
	}
	return 0, c.errorf("operand is not a value")
}

// srcOf returns the register of a source operand.
func (c *compiler) srcOf(o *operand, t Type, ok func(t, r Type) bool) (int32, error) {
	s, err := c.source(o, t, ok)
	if err == nil && o.kind == operandRegister {
		c.in.srcs = append(c.in.srcs, s)
	}
	return s, err
}

func (c *compiler) src(i int, t Type) (int32, error) { return c.srcOf(&c.s.args[i], t, sameSize) }

// dstOf returns the register of a destination operand.
func (c *compiler) dstOf(o *operand, t Type, ok func(t, r Type) bool) (int32, error) {
	switch {
	case o.kind == operandSink:
		if c.scrap < 0 {
			c.scrap = c.slot()
		}
		return c.scrap, nil
	case o.kind != operandRegister:
		return 0, c.errorf("destination is not a register")
	case !ok(t, o.reg.typ):
		return 0, c.errorf("register %s has type .%s where .%s belongs", o.name, o.reg.typ, t)
	}
	s := c.register(o.reg)
	c.in.dsts = append(c.in.dsts, s)
	return s, nil
}

func (c *compiler) dst(i int, t Type) (int32, error) { return c.dstOf(&c.s.args[i], t, sameSize) }

// psrc returns a source predicate, and the mask that is exclusive-ored with its value.
func (c *compiler) psrc(o *operand) (p int32, flip uint32, err error) {
	if o.kind != operandRegister || o.reg.typ != Pred {
		return 0, 0, c.errorf("operand is not a predicate register")
	}
	p = c.predicate(o.reg)
	c.in.psrcs = append(c.in.psrcs, p)
	if o.not {
		flip = ^uint32(0)
	}
	return p, flip, nil
}

// pdst returns a destination predicate.
func (c *compiler) pdst(o *operand) (int32, error) {
	if o.kind == operandSink {
		if c.pscrap < 0 {
			c.pscrap = int32(c.k.preds)
			c.k.preds++
		}
		return c.pscrap, nil
	}
	if o.kind != operandRegister || o.reg.typ != Pred || o.not {
		return 0, c.errorf("destination is not a predicate register")
	}
	p := c.predicate(o.reg)
	c.in.pdsts = append(c.in.pdsts, p)
	return p, nil
}

// args resolves a destination and sources of the given types.
func (c *compiler) args(d Type, srcs ...Type) (out [5]int32, err error) {
	if err = c.count(1 + len(srcs)); err != nil {
		return out, err
	}
	// Sources come first so that a register that is both is known to be read before it is written.
	for i, t := range srcs {
		if out[i+1], err = c.src(i+1, t); err != nil {
			return out, err
		}
	}
	out[0], err = c.dst(0, d)
	return out, err
}

// vector resolves the elements of a vector operand, or a single operand, as sources or destinations.
func (c *compiler) vector(o *operand, n int, t Type, dst bool, ok func(t, r Type) bool) ([]int32, error) {
	elems := []operand{*o}
	if o.kind == operandVector {
		elems = o.vec
	}
	if len(elems) != n {
		return nil, c.errorf("vector of %d elements where %d belong", len(elems), n)
	}
	out := make([]int32, n)
	for i := range elems {
		var err error
		if dst {
			out[i], err = c.dstOf(&elems[i], t, ok)
		} else {
			out[i], err = c.srcOf(&elems[i], t, ok)
		}
		if err != nil {
			return nil, err
		}
	}
	if dst {
		for i := range out {
			if out[i] != c.scrap && slices.Contains(out[:i], out[i]) {
				return nil, c.errorf("vector names a register twice")
			}
		}
	}
	return out, nil
}
