package ptxsim

import "fmt"

// ledger records which blocks of a launch accessed which granules of global memory, for the checks between blocks.
// Blocks are entered in the order of their numbers, so that what it reports does not depend on the workers.
type ledger struct {
	pages map[uint64]*ledgerPage
}

// ledgerPage has, for each granule, a block+1 that wrote it, that read it and that changed it atomically, with the
// instructions.
type ledgerPage struct {
	write, read, atomic []entry
}

type entry struct {
	block int32 // number+1, or 0
	pc    int32
}

// enter adds the accesses of a block and returns the first race with a block before it.
func (l *ledger) enter(b *block) *Fault {
	me := int32(b.number + 1)
	for _, p := range b.order {
		lp := l.pages[p.base]
		if lp == nil {
			n := pageBytes >> b.k.granule
			lp = &ledgerPage{read: make([]entry, n)}
			l.pages[p.base] = lp
		}
		for i := p.lo; i < p.hi; i++ {
			c := &p.cells[i]
			if c.gen != b.gen {
				continue
			}
			if c.flags&cellRead != 0 {
				if f := l.clash(b, p, i, "read", c.rpc, "write", lp.write, "atomic operation", lp.atomic); f != nil {
					return f
				}
				if lp.read[i].block == 0 {
					lp.read[i] = entry{block: me, pc: c.rpc}
				}
			}
			if c.flags&cellWritten != 0 {
				if f := l.clash(b, p, i, "write", c.wpc, "read", lp.read, "write", lp.write); f != nil {
					return f
				}
				if f := l.clash(b, p, i, "write", c.wpc, "atomic operation", lp.atomic, "", nil); f != nil {
					return f
				}
				if lp.write == nil {
					lp.write = make([]entry, len(lp.read))
				}
				lp.write[i] = entry{block: me, pc: c.wpc}
			}
			if c.flags&cellAtomic != 0 {
				if f := l.clash(b, p, i, "atomic operation", c.apc, "read", lp.read, "write", lp.write); f != nil {
					return f
				}
				if lp.atomic == nil {
					lp.atomic = make([]entry, len(lp.read))
				}
				lp.atomic[i] = entry{block: me, pc: c.apc}
			}
		}
	}
	return nil
}

// clash returns a fault if another block is in one of two lists.
func (l *ledger) clash(b *block, p *page, i int, is string, pc int32, was1 string, list1 []entry, was2 string,
	list2 []entry) *Fault {
	me := int32(b.number + 1)
	for k, list := range [2][]entry{list1, list2} {
		if list == nil || list[i].block == 0 || list[i].block == me {
			continue
		}
		was := was1
		if k == 1 {
			was = was2
		}
		in := &b.k.code[pc]
		addr := p.base + uint64(i)<<b.k.granule
		return &Fault{Check: CheckRace, Kernel: b.k.fn.name, Line: in.line, Instr: in.text, Block: b.index,
			Text: fmt.Sprintf("%s of %s and %s by block %v at line %d have no order, because they are in one launch", is,
				b.where("global", addr), was, b.shape.index(int(list[i].block-1)), b.k.code[list[i].pc].line)}
	}
	return nil
}
