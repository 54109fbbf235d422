package ptxsim

// asyncQueue has the copies of cp.async that the threads of a warp have issued and not waited for. Their bytes reach
// shared memory when the thread waits for their group, and until then every access to them is a fault. After the wait
// they count as written by the thread at that moment, so that others see them after a barrier.
type asyncQueue struct {
	copies    []asyncCopy
	committed [warpSize]int // groups that the lane has committed
}

type asyncCopy struct {
	dst   uint64
	n     int
	data  [16]byte
	lane  int
	group int // number of commits of the lane before the one that commits this copy
}

func (q *asyncQueue) reset() {
	q.copies = q.copies[:0]
	q.committed = [warpSize]int{}
}

// opAsync is cp.async, cp.async.commit_group, cp.async.wait_group and cp.async.wait_all.
func opAsync(c *compiler) error {
	switch {
	case !c.has("async"):
		return c.errorf("only cp.async is supported")
	case c.has("commit_group"):
		c.in.run = func(w *warp, m uint32) {
			for l := range w.async.committed {
				if m>>l&1 != 0 {
					w.async.committed[l]++
				}
			}
		}
		return c.count(0)
	case c.has("wait_all"):
		c.in.run = func(w *warp, m uint32) { w.waitAsync(m, -1) }
		return c.count(0)
	case c.has("wait_group"):
		if err := c.count(1); err != nil {
			return err
		}
		o := c.s.args[0]
		if o.kind != operandInt || o.int > 1<<20 {
			return c.errorf("number of groups is not a constant")
		}
		c.in.run = func(w *warp, m uint32) { w.waitAsync(m, int(o.int)) }
		return nil
	}
	return c.copyAsync()
}

// copyAsync is cp.async.ca and cp.async.cg [dst], [src], size{, bytes of the source}.
func (c *compiler) copyAsync() error {
	level := c.one("ca", "cg")
	to := c.space()
	from := c.space()
	c.hints()
	if level == "" || to != spaceShared || from != spaceGlobal {
		return c.errorf("only cp.async.ca.shared.global and cp.async.cg.shared.global are supported")
	}
	if err := c.count(3, 4); err != nil {
		return err
	}
	o := c.s.args[2]
	n := int(o.int)
	if o.kind != operandInt || n != 16 && (level == "cg" || n != 4 && n != 8) {
		return c.errorf("size is not 4, 8 or 16, or for .cg not 16")
	}
	dst, err := c.address(&c.s.args[0], spaceShared, n)
	if err != nil {
		return err
	}
	src, err := c.address(&c.s.args[1], spaceGlobal, n)
	if err != nil {
		return err
	}
	size := c.constant(uint64(n))
	if len(c.s.args) == 4 {
		if size, err = c.src(3, U32); err != nil {
			return err
		}
	}
	c.in.run = func(w *warp, m uint32) {
		for l := 0; l < warpSize; l++ {
			if m>>l&1 == 0 {
				continue
			}
			copied := asyncCopy{dst: dst.of(w, l), n: n, lane: l, group: w.async.committed[l]}
			bytes, addr := int(uint32(w.r[size][l])), src.of(w, l)
			if bytes > n {
				w.failf(CheckUndefined, l, "cp.async reads %d bytes of a copy of %d", bytes, n)
				return
			}
			if bytes > 0 {
				if addr&uint64(n-1) != 0 {
					w.failf(CheckAlign, l, "address %#x of global memory is not a multiple of %d bytes", addr, n)
					return
				}
				data := w.global(l, addr, bytes, accessRead)
				if data == nil {
					return
				}
				copy(copied.data[:], data)
			}
			if w.at(spaceShared, l, copied.dst, n, accessAsync) == nil {
				return
			}
			w.async.copies = append(w.async.copies, copied)
		}
	}
	return nil
}

// waitAsync completes the copies of lanes but for those of the last groups; -1 completes all, committed or not.
func (w *warp) waitAsync(m uint32, groups int) {
	left := w.async.copies[:0]
	for _, c := range w.async.copies {
		if m>>c.lane&1 == 0 || groups >= 0 && c.group >= w.async.committed[c.lane]-groups {
			left = append(left, c)
			continue
		}
		copy(w.b.shared[c.dst:], c.data[:c.n])
		cells := w.b.sharedCells(c.dst, c.n)
		for i := range cells {
			cells[i].flags &^= cellPending
			cells[i].writer.time = w.clock.time
		}
	}
	w.async.copies = left
}
