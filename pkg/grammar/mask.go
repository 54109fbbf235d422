package grammar

import "slices"

// stateMask is which tokens may come in a state, whatever lies below it: those that
// certainly may, and where a token leaves the state's rule and what follows depends
// on what is open.
type stateMask struct {
	sets  [][]uint64 // shared, not to be changed
	lists [][]int32
	not   []int32   // taken from those
	also  [][]int32 // added once that is done
	pops  []pop
	// lent is how many of pops come from another state's mask, and except the tokens
	// below them that go another way from here, ascending.
	lent   int
	except []int32
	// loose says that tokens may leave the rule after any character of a class;
	// then the whole is looked at where what is open matters.
	loose bool
	// checked is the tokens that may come besides, by what follows the rule.
	checked map[*position][]int32
}

// pop is a node at which the rule may have ended.
type pop struct {
	t    *trie
	node int32
}

// positionMask is the tokens that may come at a position.
type positionMask struct {
	sets  [][]uint64
	lists [][]int32
	not   []int32   // taken from those
	also  [][]int32 // added once that is done
	never []int32   // taken at the end
}

// walker finds the tokens of tries that lead from a position to another.
type walker struct {
	m     *machine
	out   *stateMask
	ids   []int32
	steps int
}

const maxMaskSteps = 4_000_000 // nodes looked at for one mask

// walk looks at the nodes of t in a range, siblings at first, from p.
func (w *walker) walk(t *trie, from, to int32, p *position) error {
	m := w.m
	for i := from; i < to; i = t.skip[i] {
		w.steps++
		var q *position
		if p.next != nil {
			q = p.next[m.classOf[t.b[i]]]
		}
		if q == nil {
			var err error
			if q, err = m.follow(p, t.b[i]); err != nil {
				return err
			}
		}
		if q == m.nowhere {
			continue
		}
		w.ids = append(w.ids, t.ids[t.first[i]:t.first[i+1]]...)
		if i+1 == t.skip[i] {
			continue
		}
		if q.popped {
			w.out.pops = append(w.out.pops, pop{t, i})
		}
		if len(q.configs) > 0 {
			m.heard(t.b[i])
			err := w.walk(t, i+1, t.skip[i], q)
			m.unheard()
			if err != nil {
				return err
			}
		}
	}
	if w.steps > maxMaskSteps {
		return &LimitError{What: "steps for one mask", Limit: maxMaskSteps}
	}
	return nil
}

// finish puts the tokens found into out.
func (w *walker) finish() {
	if len(w.ids) == 0 {
		return
	}
	m := w.m
	if words := m.vocab.Words(); len(w.ids) > 2*words {
		set := make([]uint64, words)
		setBits(set, w.ids)
		w.out.sets = append(w.out.sets, set)
		m.bytes += 8 * words
	} else {
		w.out.lists = append(w.out.lists, slices.Clone(w.ids))
		m.bytes += 4 * len(w.ids)
	}
	m.bytes += 16 * len(w.out.pops)
}

// alone is the position of being in s above a stack of which nothing is known.
func (m *machine) alone(s *state) (*position, error) {
	if s.alone == nil {
		var err error
		if s.alone, err = m.at(s, m.stacks.unknown, nil); err != nil {
			return nil, err
		}
	}
	return s.alone, nil
}

// maskOf is the mask of s, made when it is first asked for.
func (m *machine) maskOf(s *state) (*stateMask, error) {
	if s.mask != nil {
		return s.mask, nil
	}
	key, shared := m.farKey(s)
	if shared {
		if mask := m.alike[key]; mask != nil {
			s.mask = mask
			return mask, nil
		}
	}
	m.exact = false
	w := &walker{m: m, out: &stateMask{}, ids: m.ids[:0]}
	err := w.state(s)
	m.ids = w.ids
	if err != nil {
		return nil, err
	}
	w.finish()
	m.bytes += 200
	s.mask = w.out
	if shared {
		m.alike[key] = s.mask
	}
	m.spent += w.steps / 8
	return s.mask, nil
}

// state walks the whole vocabulary from s, by runs where it is worth it.
func (w *walker) state(s *state) error {
	m := w.m
	if u := m.uniformOf(s); u.next != nil {
		if done, err := w.like(s, u.next); done || err != nil {
			return err
		}
		// Where a class is seldom asked for, learning it costs more than it spares. Free
		// text is asked for again by the next grammar.
		m.asked[u.key]++
		free := 2*m.vocab.worth(u.set) > int(m.vocab.all.size()) && u.next == s
		if r := m.vocab.runsOf(u.set, u.key, free || m.asked[u.key] > m.seldom); r != nil {
			if done, err := w.uniform(r, s, m.stacks.unknown, u, true); done || err != nil {
				return err
			}
		}
	}
	p, err := m.alone(s)
	if err != nil {
		return err
	}
	return w.walk(m.vocab.all, 0, m.vocab.all.size(), p)
}

// seldom is how many states walk the whole vocabulary before a class is learnt.
const seldom = 4

// like takes the mask of another state, to which almost all characters lead from s,
// and looks at the tokens alone that go another way from s than from there. It says
// false, having done nothing, where the other state does not read its class on and
// on.
func (w *walker) like(s, other *state) (bool, error) {
	m := w.m
	if other == s || m.uniformOf(other).next != other {
		return false, nil
	}
	mask, err := m.maskOf(other)
	if err != nil || mask.lent > 0 || len(mask.not)+len(mask.also) > 0 {
		return false, err
	}
	p, err := m.alone(s)
	if err != nil {
		return false, err
	}
	q, err := m.alone(other)
	if err != nil {
		return false, err
	}
	d := difference{m: m, t: m.vocab.all}
	if err := d.walk(0, d.t.size(), p, q, mask.loose || len(mask.pops) == 0); err != nil || d.large() {
		return false, err
	}
	w.out.loose = mask.loose
	w.out.sets, w.out.lists, w.out.not = mask.sets, mask.lists, d.not
	w.out.also = [][]int32{d.also}
	w.out.pops, w.out.lent = append(slices.Clip(mask.pops), d.pops...), len(mask.pops)
	w.out.except = d.except
	slices.Sort(w.out.except)
	w.steps += d.steps
	m.bytes += 4 * (len(d.not) + len(d.also))
	return true, nil
}

// difference finds the tokens that go another way from one position than from
// another.
type difference struct {
	m      *machine
	t      *trie
	not    []int32 // tokens that one does not take
	also   []int32 // that it does
	except []int32 // tokens for which what the other does after its rule says nothing
	pops   []pop
	steps  int
}

// large says that the difference is not worth the while.
func (d *difference) large() bool { return len(d.not)+len(d.also)+len(d.except) > 20_000 }

// walk looks at the nodes of a range. excepted says that all below is in except, or
// that nothing needs to be.
func (d *difference) walk(from, to int32, p, q *position, excepted bool) error {
	t := d.t
	for i := from; i < to && !d.large(); i = t.skip[i] {
		d.steps++
		pn, err := d.m.follow(p, t.b[i])
		if err != nil {
			return err
		}
		qn, err := d.m.follow(q, t.b[i])
		if err != nil {
			return err
		}
		switch pn {
		case qn:
			continue
		case d.m.nowhere:
			below := t.ids[t.first[i]:t.first[t.skip[i]]]
			d.not = append(d.not, below...)
			if !excepted {
				d.except = append(d.except, below...)
			}
			continue
		}
		below := excepted
		if qn.popped && !below {
			below = true
			d.except = append(d.except, t.ids[t.first[i]:t.first[t.skip[i]]]...)
		}
		if pn.popped && i+1 < t.skip[i] {
			d.pops = append(d.pops, pop{t, i})
		}
		d.also = append(d.also, t.at(i)...)
		if err := d.walk(i+1, t.skip[i], pn, qn, below); err != nil {
			return err
		}
	}
	return nil
}

// place is the position of being in s above a stack.
func (m *machine) place(s *state, above *stack) (*position, error) {
	if above == m.stacks.unknown {
		return m.alone(s)
	}
	return m.at(s, above, nil)
}

// uniform walks the tokens of r from s above a stack, where the characters of a
// class do the same in s and in the states after it until none may come. It says
// false, having done nothing, where that is not so. Where loose is allowed, those
// states may be the end of their rule.
func (w *walker) uniform(r *runs, s *state, above *stack, u *uniform, loose bool) (bool, error) {
	m := w.m
	chain := []*state{s} // after so many characters
	round := -1          // where the last of chain leads back to itself
	done := false
	for len(chain) <= r.longest+1 {
		last := chain[len(chain)-1]
		next := m.throughout(last, u.set, u.key)
		if next == nil {
			return false, nil
		}
		if next == m.dead {
			break
		}
		done = done || next.done
		if next == last {
			round = len(chain) - 1
			break
		}
		chain = append(chain, next)
	}
	if done && !loose {
		return false, nil
	}
	w.out.loose = w.out.loose || done
	count := len(chain) - 1
	if round >= 0 {
		count = r.longest
	}
	set, lists := r.within(count)
	if set != nil {
		w.out.sets = append(w.out.sets, set)
	}
	w.out.lists = append(w.out.lists, lists...)
	places := make([]*position, len(chain))
	for i, c := range chain {
		var err error
		if places[i], err = m.place(c, above); err != nil {
			return false, err
		}
	}
	if err := w.exits(r, places, round); err != nil {
		return false, err
	}
	after := func(count int32, begun []byte) (*position, error) {
		if round >= 0 {
			count = min(count, int32(round))
		}
		if int(count) >= len(places) {
			return m.nowhere, nil
		}
		p := places[count]
		var err error
		for i := 0; i < len(begun) && err == nil; i++ {
			p, err = m.follow(p, begun[i])
		}
		return p, err
	}
	for _, o := range r.odd {
		p, err := after(o.count, o.begun)
		if err == nil && p != m.nowhere {
			err = w.walk(r.t, o.node, r.t.skip[o.node], p)
		}
		if err != nil {
			return false, err
		}
	}
	for _, token := range r.partial {
		p, err := after(token.count, token.begun)
		if err != nil {
			return false, err
		}
		if p != m.nowhere {
			w.ids = append(w.ids, token.ids...)
		}
	}
	w.steps += len(r.odd) + len(r.partial)
	return true, nil
}

// exits looks at what follows characters of the class. Where the same position
// comes after any number of them from one on, their tails are looked at as one.
func (w *walker) exits(r *runs, places []*position, round int) error {
	m := w.m
	var lead byteSet
	for _, p := range places {
		allowed := m.allowed(p)
		for i := range lead {
			lead[i] |= allowed[i] & r.leaves[i]
		}
	}
	for b := range lead.all() {
		for count := 0; count < len(places); count++ {
			q, err := m.follow(places[count], b)
			if err != nil {
				return err
			}
			w.steps++
			if q == m.nowhere {
				continue
			}
			last := r.furthest(b)
			if count > last {
				break
			}
			to := count
			for to < last && to+1 < len(places) {
				if next, err := m.follow(places[to+1], b); err != nil {
					return err
				} else if next != q {
					break
				}
				to++
			}
			switch to {
			case last, round:
				err = w.tail(r.tail(b, count, -1), q)
				count = len(places)
			default:
				err = w.tail(r.tail(b, count, count), q)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// large is the number of nodes from which a tail is worth runs of its own.
const large = 400

// tail looks at a tail from the position that its first byte leads to.
func (w *walker) tail(t *tail, q *position) error {
	if t == nil {
		return nil
	}
	w.ids = append(w.ids, t.at(0)...)
	if t.size() == 1 {
		return nil
	}
	if q.popped {
		w.out.pops = append(w.out.pops, pop{&t.trie, 0})
	}
	if len(q.configs) == 1 && len(q.kernels) == 1 && t.size() > large {
		c := q.configs[0]
		if u := w.m.uniformOf(c.at); u.next != nil && !c.at.done {
			done, err := w.uniform(t.runsOf(u.set, u.key), c.at, c.above, u, false)
			if done || err != nil {
				return err
			}
		}
	}
	return w.walk(&t.trie, 1, t.size(), q)
}
