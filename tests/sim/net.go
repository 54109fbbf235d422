package sim

import "time"

// node is a process.
type node struct {
	w       *world
	name    string
	index   int
	dead    bool
	life    int // how often it was started
	frozen  bool
	hung    bool    // it is frozen until it is killed
	slow    float64 // its computing takes this many times as long
	waiting []func()
	offset  time.Duration // of its clock
}

// awake does something as soon as the process is not frozen. Things keep their order.
func (n *node) awake(do func()) {
	if n.dead {
		return
	}
	if n.frozen {
		n.waiting = append(n.waiting, do)
		return
	}
	do()
}

// after does something later, unless the process dies before.
func (n *node) after(d time.Duration, do func()) {
	life := n.life
	n.w.after(d, func() {
		if n.life == life {
			n.awake(do)
		}
	})
}

func (n *node) freeze() {
	n.w.log("freeze %s", n.name)
	n.frozen = true
}

func (n *node) thaw() {
	n.w.log("thaw %s", n.name)
	n.frozen = false
	for len(n.waiting) > 0 && !n.frozen && !n.dead {
		do := n.waiting[0]
		n.waiting = n.waiting[1:]
		do()
	}
}

// cut tells whether no packet passes between two processes.
func (w *world) cut(a, b *node) bool {
	return w.cuts[[2]int{min(a.index, b.index), max(a.index, b.index)}]
}

// stream is one direction of a stream between two processes. Frames keep their order. While the
// processes are cut off from each other, they are held back.
type stream struct {
	w        *world
	p        *pipe
	from, to *node
	life     int // of the receiver
	last     time.Duration
	held     []func()
	closed   bool
}

func (p *pipe) stream(from, to *node) *stream {
	w := p.w
	s := &stream{w: w, p: p, from: from, to: to, life: to.life}
	w.streams = append(w.streams, s)
	return s
}

// frame is a kind of frame. Results (data) may be lost in scenarios that say so. A stage may also drop a
// batch as if it were late; other frames are not lost as long as their stream lives. Any frame but a batch
// (once) may come twice in a row.
type frame int

const (
	control frame = iota
	data
	once
)

func (s *stream) send(kind frame, do func()) {
	w := s.w
	if s.closed {
		return
	}
	if kind == data && w.chance(w.sc.Loss) {
		w.lost++
		s.p.tainted = true
		w.log("lose a frame from %s to %s", s.from.name, s.to.name)
		return
	}
	n := 1
	if kind != once && w.chance(w.sc.Repeat) {
		w.log("repeat a frame from %s to %s", s.from.name, s.to.name)
		n = 2
	}
	at := max(s.last, w.now+w.delay())
	s.last = at
	for range n {
		w.after(at-w.now, func() { s.arrive(do) })
	}
}

// arrive hands a frame to the receiver.
func (s *stream) arrive(do func()) {
	switch {
	case s.closed || s.life != s.to.life:
	case len(s.held) > 0 || s.w.cut(s.from, s.to):
		s.held = append(s.held, do)
	default:
		life := s.life
		s.to.awake(func() {
			if s.to.life == life && !s.closed { // it was frozen, and the stream may be another one by now
				do()
			}
		})
	}
}

func (s *stream) heal() {
	held := s.held
	s.held = nil
	for i, do := range held {
		if s.w.cut(s.from, s.to) {
			s.held = append(s.held, held[i:]...)
			return
		}
		s.arrive(do)
	}
}

// delay is how long a frame takes.
func (w *world) delay() time.Duration {
	d := w.sc.Hop/2 + time.Duration(w.rnd.ExpFloat64()*float64(w.sc.Hop)/2)
	if w.chance(w.sc.Jitter) {
		d += w.between(0, 20*w.sc.Hop)
	}
	return d
}
