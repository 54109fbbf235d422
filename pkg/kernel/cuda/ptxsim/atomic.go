package ptxsim

import "math"

// atomicTypes are the types of the operations of atom and red.
var atomicTypes = map[string][]Type{
	"add": {U32, S32, U64, F32, F64, F16, F16x2, BF16, BF16x2}, "min": {U32, S32, U64, S64}, "max": {U32, S32, U64, S64},
	"and": {B32, B64}, "or": {B32, B64}, "xor": {B32, B64}, "exch": {B32, B64}, "cas": {B16, B32, B64},
	"inc": {U32}, "dec": {U32},
}

// opAtomic is atom and red. Lanes take their turn in order, and so do blocks: a kernel with atomic operations on global
// memory runs its blocks one after another. Atomic operations order no other access.
func opAtomic(c *compiler) error {
	c.hints()
	s := c.space()
	op := c.one("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
	c.has("noftz")
	if op == "" {
		return c.errorf("atomic operation is not supported")
	}
	t, err := c.typ(atomicTypes[op]...)
	if err != nil {
		return err
	}
	if s != spaceGlobal && s != spaceShared && s != spaceGeneric {
		return c.errorf("atomic operations are for global and shared memory")
	}
	if s != spaceShared {
		c.k.atomics = true
	}
	red := c.s.op == "red"
	if red && (op == "exch" || op == "cas") {
		return c.errorf("red has no .%s", op)
	}
	at, n := 1, 3
	if red {
		at, n = 0, 2
	}
	if op == "cas" {
		n++
	}
	if err := c.count(n); err != nil {
		return err
	}
	a, err := c.address(&c.s.args[at], s, t.bytes())
	if err != nil {
		return err
	}
	b, err := c.src(at+1, t)
	if err != nil {
		return err
	}
	e := b
	if op == "cas" {
		if e, err = c.src(at+2, t); err != nil {
			return err
		}
	}
	d := int32(-1)
	if !red {
		if d, err = c.dst(0, t); err != nil {
			return err
		}
	}
	f := integerOperation(op, t)
	if t.class() == classFloat {
		f = atomicAdd(t)
	}
	size := t.bytes()
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			data := w.at(s, l, a.of(w, l), size, accessAtomic)
			if data == nil {
				return
			}
			old := get(data, size)
			switch {
			case op != "cas":
				put(data, size, f(old, w.r[b][l]))
			case old == w.r[b][l]:
				put(data, size, w.r[e][l])
			}
			if d >= 0 {
				w.r[d][l] = old
			}
		}
	}
	return nil
}

func atomicAdd(t Type) func(a, b uint64) uint64 {
	switch t {
	case F64:
		return func(a, b uint64) uint64 { return bits64(math.Float64frombits(a) + math.Float64frombits(b)) }
	case F32:
		return func(a, b uint64) uint64 {
			return bits32(math.Float32frombits(uint32(a)) + math.Float32frombits(uint32(b)))
		}
	}
	add := floatMods{}.lift(t, exact["add"])
	return func(a, b uint64) uint64 { return add(a, b, 0) }
}
