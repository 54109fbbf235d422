package ptxsim

// opcodes has the compiler of each instruction by the first part of its name.
var opcodes = map[string]func(*compiler) error{
	"bra": opBranch, "ret": opExit, "exit": opExit, "trap": opTrap,
	"bar": opBarrier, "barrier": opBarrier, "membar": opFence, "fence": opFence,
	"ld": opLoad, "st": opStore, "cvta": opCvta, "prefetch": opPrefetch, "prefetchu": opPrefetch,
	"mov": opMov, "selp": opSelp, "setp": opSetp, "set": opSet,
	"add": opAdd, "sub": opSub, "mul": opMul, "mad": opMad, "fma": opFma, "div": opDiv, "rem": opRem,
	"min": opMin, "max": opMax, "abs": opAbs, "neg": opNeg,
	"and": opLogic, "or": opLogic, "xor": opLogic, "not": opNot, "cnot": opNot,
	"shl": opShift, "shr": opShift, "shf": opFunnel,
	"bfe": opExtract, "bfi": opInsert, "prmt": opPermute, "popc": opCountBits, "clz": opCountBits, "brev": opReverse,
	"bfind": opFindBit, "lop3": opLop3, "dp4a": opDot, "dp2a": opDot,
	"sqrt": opRoot, "rcp": opRoot, "rsqrt": opApprox, "ex2": opApprox, "lg2": opApprox, "sin": opApprox, "cos": opApprox,
	"tanh": opApprox, "copysign": opCopySign, "testp": opTest,
	"cvt":  opConvert,
	"shfl": opShuffle, "vote": opVote, "activemask": opActive, "redux": opRedux, "match": opMatch,
	"atom": opAtomic, "red": opAtomic,
	"cp": opAsync, "ldmatrix": opLoadMatrix, "movmatrix": opMoveMatrix, "mma": opMma,
}

func opBranch(c *compiler) error {
	c.in.uni = c.has("uni")
	if err := c.count(1); err != nil {
		return err
	}
	o := &c.s.args[0]
	to, ok := c.k.fn.labels[o.name]
	if o.kind != operandLabel || !ok {
		return c.errorf("label %s is not in the kernel", o.name)
	}
	c.in.kind, c.in.target = kindBranch, int32(to)
	return nil
}

func opExit(c *compiler) error {
	c.has("uni")
	c.in.kind = kindExit
	return c.count(0)
}

func opTrap(c *compiler) error {
	c.in.run = func(w *warp, m uint32) { w.failf(CheckUndefined, first(m), "the kernel executes trap") }
	return c.count(0)
}

func first(m uint32) int {
	for l := 0; l < warpSize; l++ {
		if m>>l&1 != 0 {
			return l
		}
	}
	return 0
}

// opBarrier is bar.sync, bar.arrive, bar.red and bar.warp.sync, and barrier with the same names.
func opBarrier(c *compiler) error {
	if c.has("warp") {
		return opWarpSync(c)
	}
	c.has("cta")
	c.has("aligned")
	if c.one("sync") == "" {
		switch {
		case c.has("red"):
			return opBarrierReduce(c)
		case c.has("arrive"):
			return c.barrier(c.s.args, false)
		}
		return c.errorf("barrier has no operation")
	}
	return c.barrier(c.s.args, true)
}

// barrier compiles a barrier whose operands are its number and, optionally, its count of threads.
func (c *compiler) barrier(args []operand, wait bool) error {
	if n := len(args); n != 1 && n != 2 || !wait && n != 2 {
		return c.errorf("%d operands", n)
	}
	id, err := c.srcOf(&args[0], U32, sameSize)
	if err != nil {
		return err
	}
	count := c.constant(0)
	if len(args) > 1 {
		if count, err = c.srcOf(&args[1], U32, sameSize); err != nil {
			return err
		}
	}
	if o := args[len(args)-1]; len(args) > 1 && o.kind == operandInt && o.int%warpSize != 0 {
		return c.errorf("a barrier of %d threads is not whole warps", o.int)
	}
	c.in.kind = kindBarrier
	c.in.run = func(w *warp, m uint32) {
		l := first(m)
		for o := l; o < warpSize; o++ {
			if m>>o&1 != 0 && (w.r[id][o] != w.r[id][l] || w.r[count][o] != w.r[count][l]) {
				w.failf(CheckBarrier, o, "the number or the count of the barrier differs between lanes")
				return
			}
		}
		w.b.arrive(w, m, w.r[id][l], w.r[count][l], wait)
	}
	return nil
}

// opBarrierReduce is bar.red.popc.u32 d, a{, b}, {!}p and bar.red.and.pred p, a{, b}, {!}q.
func opBarrierReduce(c *compiler) error {
	op := c.one("popc", "and", "or")
	t, err := c.typ(U32, Pred)
	if err != nil {
		return err
	}
	if op == "" || (op == "popc") != (t == U32) {
		return c.errorf("operation and type do not match")
	}
	if err := c.count(3, 4); err != nil {
		return err
	}
	args := c.s.args
	p, flip, err := c.psrc(&args[len(args)-1])
	if err != nil {
		return err
	}
	var result func(w *warp, n int, all, some bool)
	if op == "popc" {
		d, err := c.dst(0, U32)
		if err != nil {
			return err
		}
		result = func(w *warp, n int, all, some bool) {
			for l := range w.r[d] {
				w.r[d][l] = uint64(n)
			}
		}
	} else {
		d, err := c.pdst(&args[0])
		if err != nil {
			return err
		}
		result = func(w *warp, n int, all, some bool) {
			w.p[d] = 0
			if op == "and" && all || op == "or" && some {
				w.p[d] = allLanes
			}
		}
	}
	err = c.barrier(args[1:len(args)-1], true)
	inner := c.in.run
	c.in.run = func(w *warp, m uint32) {
		w.request = barrierRequest{votes: w.p[p] ^ flip, result: result}
		inner(w, m)
		w.request.votes = 0
	}
	return err
}
