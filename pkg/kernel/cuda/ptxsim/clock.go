package ptxsim

// The race checks keep a happens-before relation, as FastTrack does (Flanagan and Freund, PLDI 2009), but with a clock
// for each warp and not for each thread. The time of a warp is the number of its synchronisations so far. An access is
// recorded with its lane and the time of its warp. It happens before what a thread does now if
//   - the same thread made it, or
//   - its time is below the warp's entry in the clock of the thread's warp, which barriers of the block and
//     bar.warp.sync of a whole warp raise, or
//   - it was made in the same warp, and bar.warp.sync of some lanes ordered the two lanes since.
//
// Lockstep and shuffles order nothing: PTX promises the order of memory accesses by bar.warp.sync alone.
type clock struct {
	time uint32
	seen [warpSize]uint32 // for each warp of the block: accesses at earlier times happened before
	// pairs[i][j] does the same for lane j as lane i sees it. It is nil until some lanes synchronise alone.
	pairs *[warpSize][warpSize]uint32
}

func (c *clock) reset(id int) {
	*c = clock{time: 1}
	c.seen[id] = 1
}

// publish returns what a thread that waits for this warp learns, and begins a new time.
func (c *clock) publish(id int, out *[warpSize]uint32) {
	c.time++
	for i, t := range c.seen {
		out[i] = max(out[i], t)
	}
	out[id] = c.time
}

func (c *clock) learn(in *[warpSize]uint32) {
	for i, t := range in {
		c.seen[i] = max(c.seen[i], t)
	}
}

// sync orders the lanes of mask, as bar.warp.sync does; all are the lanes of the warp.
func (c *clock) sync(id int, mask, all uint32) {
	c.time++
	if mask&all == all {
		c.seen[id] = c.time
		return
	}
	if c.pairs == nil {
		c.pairs = &[warpSize][warpSize]uint32{}
	}
	var joint [warpSize]uint32
	for i := range joint {
		if mask>>i&1 == 0 {
			continue
		}
		for j := range joint {
			joint[j] = max(joint[j], c.pairs[i][j])
		}
		joint[i] = c.time
	}
	for i := range joint {
		if mask>>i&1 != 0 {
			c.pairs[i] = joint
		}
	}
}

// access is accesses of some lanes of a warp at one time.
type access struct {
	time   uint32
	lanes  uint32
	pc     int32
	warp   uint8
	atomic bool
}

// before reports whether an access happened before what a lane of warp id does now, and else a lane that is in a race.
func (c *clock) before(a *access, id, lane int) (bool, int) {
	if a.time < c.seen[a.warp] {
		return true, 0
	}
	others := a.lanes
	if int(a.warp) == id {
		if others &^= 1 << lane; others == 0 {
			return true, 0
		}
	}
	for j := 0; j < warpSize; j++ {
		if others>>j&1 == 0 {
			continue
		}
		if int(a.warp) != id || c.pairs == nil || a.time >= c.pairs[lane][j] {
			return false, j
		}
	}
	return true, 0
}
