package ptxsim

import "encoding/binary"

// Generic addresses of shared and local memory. Global addresses are addresses of Go memory, which are far below.
const (
	sharedBase = uint64(1) << 60
	localBase  = uint64(1) << 61
)

// at returns n bytes of a state space for an access of a lane, after all checks, or nil if the warp has failed.
func (w *warp) at(s space, lane int, addr uint64, n int, kind accessKind) []byte {
	if s == spaceGeneric {
		switch {
		case addr >= localBase:
			s, addr = spaceLocal, addr-localBase
		case addr >= sharedBase:
			s, addr = spaceShared, addr-sharedBase
		default:
			s = spaceGlobal
		}
	}
	if addr&uint64(n-1) != 0 {
		w.failf(CheckAlign, lane, "address %#x of %s memory is not a multiple of %d bytes", addr, spaceName(s), n)
		return nil
	}
	switch s {
	case spaceGlobal:
		return w.global(lane, addr, n, kind)
	case spaceShared:
		return w.shared(lane, addr, n, kind)
	case spaceLocal:
		size := uint64(w.b.k.local)
		if addr > size || uint64(n) > size-addr {
			w.failf(CheckBounds, lane, "%d bytes at %d of %d bytes of local memory", n, int64(addr), size)
			return nil
		}
		addr += uint64(lane) * size
		for i, set := range w.localSet[addr:][:n] {
			if kind == accessWrite {
				w.localSet[addr:][i] = true
			} else if !set {
				w.failf(CheckUnset, lane, "%s of local memory at %d, which nothing wrote", accessNames[kind],
					addr+uint64(i)-uint64(lane)*size)
				return nil
			}
		}
		return w.local[addr:][:n]
	default:
		data := w.b.m.consts
		if addr > uint64(len(data)) || n > len(data)-int(addr) {
			w.failf(CheckBounds, lane, "%d bytes at %d of %d bytes of constants", n, int64(addr), len(data))
			return nil
		}
		return data[addr:][:n]
	}
}

func spaceName(s space) string {
	for name, v := range spaceNames {
		if v == s && name != "shared::cta" {
			return name
		}
	}
	return "generic"
}

func (w *warp) global(lane int, addr uint64, n int, kind accessKind) []byte {
	a := w.last
	if a == nil || addr < a.addr || addr-a.addr >= uint64(len(a.data)) {
		if a = w.b.table.find(addr); a == nil {
			w.failf(CheckBounds, lane, "%s of %d bytes at %#x, which is in no allocation", accessNames[kind], n, addr)
			return nil
		}
		w.last = a
	}
	off := addr - a.addr
	if off >= uint64(len(a.data)) || uint64(n) > uint64(len(a.data))-off {
		w.failf(CheckBounds, lane, "%s of %d bytes at %#x, which is byte %d of the allocation of %d bytes at %#x",
			accessNames[kind], n, addr, off, len(a.data), a.addr)
		return nil
	}
	if !w.touch(w.b.globalCells(addr, n), lane, kind, "global", addr) {
		return nil
	}
	return a.data[off : off+uint64(n)]
}

func (w *warp) shared(lane int, addr uint64, n int, kind accessKind) []byte {
	data := w.b.shared
	if addr > uint64(len(data)) || n > len(data)-int(addr) {
		w.failf(CheckBounds, lane, "%s of %d bytes at %d of %d bytes of shared memory", accessNames[kind], n, int64(addr),
			len(data))
		return nil
	}
	cells := w.b.sharedCells(addr, n)
	if kind != accessWrite && kind != accessAsync {
		for i := range cells {
			if cells[i].gen != w.b.gen || cells[i].flags&cellWritten == 0 {
				w.failf(CheckUnset, lane, "%s of shared memory at %d, which nothing wrote", accessNames[kind],
					addr+uint64(i)<<w.b.k.granule)
				return nil
			}
		}
	}
	if !w.touch(cells, lane, kind, "shared", addr) {
		return nil
	}
	return data[addr:][:n]
}

// address is a compiled memory operand.
type address struct {
	slot  int32 // register of the base
	off   uint64
	space space
	bits  uint64 // mask of an address: the low 32 bits if the register has as many
}

// address compiles a memory operand of a space, for accesses of n bytes.
func (c *compiler) address(o *operand, s space, n int) (address, error) {
	if o.kind != operandMemory {
		return address{}, c.errorf("operand is not an address in brackets")
	}
	a := address{space: s, off: uint64(o.off), bits: ^uint64(0)}
	for g := uint(0); g < c.k.granule; g++ {
		if n == 1<<g {
			c.k.granule = g
		}
	}
	switch {
	case o.reg != nil:
		t := o.reg.typ
		if t.class() == classFloat || t.bits() != 64 && (t.bits() != 32 || s != spaceShared && s != spaceLocal &&
			s != spaceConst) {
			return a, c.errorf("register %s of type .%s is not an address", o.reg.name, t)
		}
		if t.bits() == 32 {
			a.bits = 1<<32 - 1
		}
		a.slot = c.register(o.reg)
		c.in.srcs = append(c.in.srcs, a.slot)
	case o.v != nil:
		if o.v.space != s {
			return a, c.errorf("variable %s is in .%s memory", o.v.name, spaceName(o.v.space))
		}
		a.slot = c.constant(o.v.addr)
	default:
		a.slot = c.constant(o.int)
	}
	return a, nil
}

func (a *address) of(w *warp, lane int) uint64 { return (w.r[a.slot][lane] + a.off) & a.bits }

// space removes the state space from the modifiers.
func (c *compiler) space() space {
	for i, m := range c.mods {
		if s, ok := spaceNames[m]; ok {
			c.mods = append(c.mods[:i:i], c.mods[i+1:]...)
			return s
		}
	}
	return spaceGeneric
}

// hints removes modifiers about caches and about the order of memory, which change nothing here: the race checks do
// not take accesses with an order as synchronisation.
func (c *compiler) hints() {
	for c.one("weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "cta", "gpu", "sys", "ca", "cg", "cs",
		"lu", "cv", "wb", "wt", "L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last",
		"L1::no_allocate", "L2::64B", "L2::128B", "L2::256B") != "" {
		continue
	}
}

// vectorSize removes .v2 and .v4.
func (c *compiler) vectorSize() int {
	switch c.one("v2", "v4") {
	case "v2":
		return 2
	case "v4":
		return 4
	}
	return 1
}

func opLoad(c *compiler) error {
	if err := c.count(2); err != nil {
		return err
	}
	c.hints()
	s := c.space()
	kind := accessRead
	if c.has("nc") {
		if s != spaceGlobal {
			return c.errorf(".nc is for .global")
		}
		kind = accessConstant
	}
	n := c.vectorSize()
	t, err := c.typ()
	if err != nil {
		return err
	}
	if t == Pred || t == TF32 || t == F16x2 || t == BF16x2 || t == BF16 || t == F16 {
		return c.errorf("type .%s is not supported here", t)
	}
	if n*t.bytes() > 16 {
		return c.errorf("vector of %d bytes", n*t.bytes())
	}
	if s == spaceParam {
		return c.loadParam(n, t)
	}
	a, err := c.address(&c.s.args[1], s, n*t.bytes())
	if err != nil {
		return err
	}
	dst, err := c.vector(&c.s.args[0], n, t, true, wider)
	if err != nil {
		return err
	}
	masks := c.masks(&c.s.args[0], t)
	size, signed := t.bytes(), t.signed()
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			data := w.at(s, l, a.of(w, l), n*size, kind)
			if data == nil {
				return
			}
			for i, d := range dst {
				if !signed {
					w.r[d][l] = get(data[i*size:], size)
					continue
				}
				w.r[d][l] = uint64(t.extend(get(data[i*size:], size))) & masks[i]
			}
		}
	}
	return nil
}

// masks returns the masks of the registers of a destination, to which values are extended.
func (c *compiler) masks(o *operand, t Type) []uint64 {
	elems := []operand{*o}
	if o.kind == operandVector {
		elems = o.vec
	}
	out := make([]uint64, len(elems))
	for i := range elems {
		out[i] = t.mask()
		if elems[i].reg != nil {
			out[i] = elems[i].reg.typ.mask()
		}
	}
	return out
}

// loadParam compiles a load from the parameters to a copy of a fixed register.
func (c *compiler) loadParam(n int, t Type) error {
	o := &c.s.args[1]
	if o.kind != operandMemory || o.v == nil || o.v.space != spaceParam {
		return c.errorf("operand is not a parameter")
	}
	size := t.bytes()
	if o.off < 0 || o.off+int64(n*size) > int64(o.v.size) || (int64(o.v.addr)+o.off)%int64(n*size) != 0 {
		return c.errorf("%d bytes at %d of parameter %s, which has %d", n*size, o.off, o.v.name, o.v.size)
	}
	src := make([]int32, n)
	for i := range src {
		key := [3]int{int(o.v.addr) + int(o.off) + i*size, size}
		slot, ok := c.params[key]
		if !ok {
			slot = c.slot()
			c.params[key] = slot
			c.k.fixed = append(c.k.fixed, fixed{slot: slot, param: o.v, off: key[0], size: size})
		}
		src[i] = slot
	}
	dst, err := c.vector(&c.s.args[0], n, t, true, wider)
	if err != nil {
		return err
	}
	masks := c.masks(&c.s.args[0], t)
	c.in.run = func(w *warp, m uint32) {
		for i, d := range dst {
			for l := range w.r[d] {
				if m>>l&1 != 0 {
					w.r[d][l] = uint64(t.extend(w.r[src[i]][l])) & masks[i]
				}
			}
		}
	}
	return nil
}

func opStore(c *compiler) error {
	if err := c.count(2); err != nil {
		return err
	}
	c.hints()
	s := c.space()
	if s == spaceParam || s == spaceConst {
		return c.errorf("memory of this space is not written")
	}
	n := c.vectorSize()
	t, err := c.typ()
	if err != nil {
		return err
	}
	if t == Pred || t == TF32 || t == F16x2 || t == BF16x2 || t == BF16 || t == F16 {
		return c.errorf("type .%s is not supported here", t)
	}
	if n*t.bytes() > 16 {
		return c.errorf("vector of %d bytes", n*t.bytes())
	}
	a, err := c.address(&c.s.args[0], s, n*t.bytes())
	if err != nil {
		return err
	}
	src, err := c.vector(&c.s.args[1], n, t, false, wider)
	if err != nil {
		return err
	}
	size := t.bytes()
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			data := w.at(s, l, a.of(w, l), n*size, accessWrite)
			if data == nil {
				return
			}
			for i, r := range src {
				put(data[i*size:], size, w.r[r][l])
			}
		}
	}
	return nil
}

func get(b []byte, size int) uint64 {
	switch size {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return binary.LittleEndian.Uint64(b)
}

func put(b []byte, size int, v uint64) {
	switch size {
	case 1:
		b[0] = byte(v)
	case 2:
		binary.LittleEndian.PutUint16(b, uint16(v))
	case 4:
		binary.LittleEndian.PutUint32(b, uint32(v))
	default:
		binary.LittleEndian.PutUint64(b, v)
	}
}

// opCvta converts between generic addresses and those of a space.
func opCvta(c *compiler) error {
	to := c.has("to")
	s := c.space()
	t, err := c.typ(U64)
	if err != nil {
		return err
	}
	r, err := c.args(t, t)
	if err != nil {
		return err
	}
	var base uint64
	switch s {
	case spaceGlobal:
	case spaceShared:
		base = sharedBase
	case spaceLocal:
		base = localBase
	default:
		return c.errorf("addresses of this space are not supported")
	}
	if to {
		base = -base
	}
	c.in.run = unary(r[0], r[1], func(a uint64) uint64 { return a + base })
	return nil
}

// opPrefetch checks its operand and does nothing.
func opPrefetch(c *compiler) error {
	s := c.space()
	if c.one("L1", "L2") == "" {
		return c.errorf("prefetch has no level")
	}
	if err := c.count(1); err != nil {
		return err
	}
	_, err := c.address(&c.s.args[0], s, 16)
	c.in.run = func(*warp, uint32) {}
	return err
}

// opFence is membar and fence. They order nothing that the race checks know.
func opFence(c *compiler) error {
	for c.one("cta", "gl", "gpu", "sys", "sc", "acq_rel") != "" {
		continue
	}
	c.in.run = func(*warp, uint32) {}
	return c.count(0)
}
