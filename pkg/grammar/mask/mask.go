package mask

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/automaton"
	"github.com/lamina-mesh/lamina/pkg/grammar/spelling"
)

// stateMask is the part of a mask that depends on a state alone: the tokens that are allowed
// whatever is on the stack, and the trie nodes at which a token leaves the state's rule, so
// that the rest of it depends on the stack.
type stateMask struct {
	sets  [][]uint64 // shared, read-only
	lists [][]int32
	not   []int32   // removed from those
	also  [][]int32 // added afterwards
	pops  []pop
	// lent is the number of pops that come from another state's mask. except lists, in
	// ascending order, the tokens under them that behave differently in this state.
	lent   int
	except []int32
	// loose means that tokens may leave the rule after any character of a class. The whole
	// vocabulary is then walked for each stack.
	loose bool
	// checked is the tokens that the stack allows besides, by the position below the rule.
	checked map[*automaton.Position][]int32
}

// pop is a trie node at which the rule may have ended.
type pop struct {
	t    *trie
	node int32
}

// positionMask is the tokens that may follow a position.
type positionMask struct {
	sets  [][]uint64
	lists [][]int32
	not   []int32   // removed from those
	also  [][]int32 // added afterwards
	never []int32   // removed at the end
}

// walker finds the tokens of a trie that a position allows.
type walker struct {
	m     *engine
	out   *stateMask
	ids   []int32
	steps int
}

const maxMaskSteps = 4_000_000 // nodes visited for one mask

// walk follows the trie nodes of a range, which are siblings and their subtrees, from p.
func (w *walker) walk(t *trie, from, to int32, p *automaton.Position) error {
	m := w.m
	for i := from; i < to; i = t.skip[i] {
		w.steps++
		var q *automaton.Position
		if p.Next != nil {
			q = p.Next[m.ClassOf[t.b[i]]]
		}
		if q == nil {
			var err error
			if q, err = m.Follow(p, t.b[i]); err != nil {
				return err
			}
		}
		if q == m.Nowhere {
			continue
		}
		w.ids = append(w.ids, t.ids[t.first[i]:t.first[i+1]]...)
		if i+1 == t.skip[i] {
			continue
		}
		if q.Popped {
			w.out.pops = append(w.out.pops, pop{t, i})
		}
		if len(q.Configs) > 0 {
			m.PushByte(t.b[i])
			err := w.walk(t, i+1, t.skip[i], q)
			m.PopByte()
			if err != nil {
				return err
			}
		}
	}
	if w.steps > maxMaskSteps {
		return &ast.LimitError{What: "steps for one mask", Limit: maxMaskSteps}
	}
	return nil
}

// finish stores the tokens found in out, as a set or a list, whichever is smaller.
func (w *walker) finish() {
	if len(w.ids) == 0 {
		return
	}
	m := w.m
	if words := m.vocab.Words(); len(w.ids) > 2*words {
		set := make([]uint64, words)
		setBits(set, w.ids)
		w.out.sets = append(w.out.sets, set)
		m.Bytes += 8 * words
	} else {
		w.out.lists = append(w.out.lists, slices.Clone(w.ids))
		m.Bytes += 4 * len(w.ids)
	}
	m.Bytes += 16 * len(w.out.pops)
}

// maskOf returns the mask of s, computed on first use.
func (m *engine) maskOf(s *automaton.State) (*stateMask, error) {
	known := notes(s)
	if known.mask != nil {
		return known.mask, nil
	}
	key, shared := m.farKey(s)
	if shared {
		if mask := m.alike[key]; mask != nil {
			known.mask = mask
			return mask, nil
		}
	}
	m.Exact = false
	w := &walker{m: m, out: &stateMask{}, ids: m.ids[:0]}
	err := w.state(s)
	m.ids = w.ids
	if err != nil {
		return nil, err
	}
	w.finish()
	m.Bytes += 200
	known.mask = w.out
	if shared {
		m.alike[key] = known.mask
	}
	m.Spent += w.steps / 8
	return known.mask, nil
}

// state computes the mask of s: as a small difference to a similar state, by runs, or by a
// walk of the whole vocabulary.
func (w *walker) state(s *automaton.State) error {
	m := w.m
	if u := m.uniformOf(s); u.next != nil {
		if done, err := w.like(s, u.next); done || err != nil {
			return err
		}
		// For a class that is rarely used, learning its runs costs more than it saves. Free
		// text is used by the next grammar again.
		m.asked[u.key]++
		free := 2*m.vocab.worth(u.set) > int(m.vocab.all.size()) && u.next == s
		if r := m.vocab.runsOf(u.set, u.key, free || m.asked[u.key] > m.seldom); r != nil {
			if done, err := w.uniform(r, s, m.Stacks.Unknown, u, true); done || err != nil {
				return err
			}
		}
	}
	p, err := m.Alone(s)
	if err != nil {
		return err
	}
	return w.walk(m.vocab.all, 0, m.vocab.all.size(), p)
}

// seldom is how many states walk the whole vocabulary before the runs of a class are learnt.
const seldom = 4

// like derives the mask of s from that of the state to which almost all characters lead from
// s, and walks only the tokens that behave differently in s. It does nothing and
// reports false if the other state does not loop on its class.
func (w *walker) like(s, other *automaton.State) (bool, error) {
	m := w.m
	if other == s || m.uniformOf(other).next != other {
		return false, nil
	}
	mask, err := m.maskOf(other)
	if err != nil || mask.lent > 0 || len(mask.not)+len(mask.also) > 0 {
		return false, err
	}
	p, err := m.Alone(s)
	if err != nil {
		return false, err
	}
	q, err := m.Alone(other)
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
	m.Bytes += 4 * (len(d.not) + len(d.also))
	return true, nil
}

// difference finds the tokens that behave differently in two positions.
type difference struct {
	m      *engine
	t      *trie
	not    []int32 // tokens that the first position does not allow
	also   []int32 // tokens that it allows
	except []int32 // tokens for which the pops of the second position say nothing
	pops   []pop
	steps  int
}

// large reports whether a mask of its own is cheaper than the difference.
func (d *difference) large() bool { return len(d.not)+len(d.also)+len(d.except) > 20_000 }

// walk compares the nodes of a range. excepted means that everything below is already in
// except, or need not be.
func (d *difference) walk(from, to int32, p, q *automaton.Position, excepted bool) error {
	t := d.t
	for i := from; i < to && !d.large(); i = t.skip[i] {
		d.steps++
		pn, err := d.m.Follow(p, t.b[i])
		if err != nil {
			return err
		}
		qn, err := d.m.Follow(q, t.b[i])
		if err != nil {
			return err
		}
		switch pn {
		case qn:
			continue
		case d.m.Nowhere:
			below := t.ids[t.first[i]:t.first[t.skip[i]]]
			d.not = append(d.not, below...)
			if !excepted {
				d.except = append(d.except, below...)
			}
			continue
		}
		below := excepted
		if qn.Popped && !below {
			below = true
			d.except = append(d.except, t.ids[t.first[i]:t.first[t.skip[i]]]...)
		}
		if pn.Popped && i+1 < t.skip[i] {
			d.pops = append(d.pops, pop{t, i})
		}
		d.also = append(d.also, t.at(i)...)
		if err := d.walk(i+1, t.skip[i], pn, qn, below); err != nil {
			return err
		}
	}
	return nil
}

// uniform finds the tokens by runs: in s, and in each state after it, all characters of a
// class lead to the same next state. The chain of these states ends, or its last state loops.
// Tokens of k characters of the class are allowed if the chain has k steps; what follows the
// characters in other tokens is walked from the k-th state. It does nothing and
// reports false if some state distinguishes the characters. loose allows states that end their rule.
func (w *walker) uniform(r *runs, s *automaton.State, above *automaton.Stack, u *uniform, loose bool) (bool, error) {
	m := w.m
	chain := []*automaton.State{s} // the state after each number of characters
	round := -1                    // index of the last state if it loops
	done := false
	for len(chain) <= r.longest+1 {
		last := chain[len(chain)-1]
		next := m.throughout(last, u.set, u.key)
		if next == nil {
			return false, nil
		}
		if next == m.Dead {
			break
		}
		done = done || next.Done
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
	places := make([]*automaton.Position, len(chain))
	for i, c := range chain {
		var err error
		if places[i], err = m.Place(c, above); err != nil {
			return false, err
		}
	}
	if err := w.exits(r, places, round); err != nil {
		return false, err
	}
	after := func(count int32, begun []byte) (*automaton.Position, error) {
		if round >= 0 {
			count = min(count, int32(round))
		}
		if int(count) >= len(places) {
			return m.Nowhere, nil
		}
		p := places[count]
		var err error
		for i := 0; i < len(begun) && err == nil; i++ {
			p, err = m.Follow(p, begun[i])
		}
		return p, err
	}
	for _, o := range r.odd {
		p, err := after(o.count, o.begun)
		if err == nil && p != m.Nowhere {
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
		if p != m.Nowhere {
			w.ids = append(w.ids, token.ids...)
		}
	}
	w.steps += len(r.odd) + len(r.partial)
	return true, nil
}

// exits walks what follows the characters of the class. If the same position follows any
// number of them from some number on, the tails of all these are walked as one.
func (w *walker) exits(r *runs, places []*automaton.Position, round int) error {
	m := w.m
	var lead spelling.ByteSet
	for _, p := range places {
		allowed := m.Allowed(p)
		for i := range lead {
			lead[i] |= allowed[i] & r.leaves[i]
		}
	}
	for b := range lead.All() {
		for count := 0; count < len(places); count++ {
			q, err := m.Follow(places[count], b)
			if err != nil {
				return err
			}
			w.steps++
			if q == m.Nowhere {
				continue
			}
			last := r.furthest(b)
			if count > last {
				break
			}
			to := count
			for to < last && to+1 < len(places) {
				if next, err := m.Follow(places[to+1], b); err != nil {
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

// large is the number of nodes from which a tail has runs of its own.
const large = 400

// tail walks a tail from the position after its first byte.
func (w *walker) tail(t *tail, q *automaton.Position) error {
	if t == nil {
		return nil
	}
	w.ids = append(w.ids, t.at(0)...)
	if t.size() == 1 {
		return nil
	}
	if q.Popped {
		w.out.pops = append(w.out.pops, pop{&t.trie, 0})
	}
	if len(q.Configs) == 1 && len(q.Kernels) == 1 && t.size() > large {
		c := q.Configs[0]
		if u := w.m.uniformOf(c.At); u.next != nil && !c.At.Done {
			done, err := w.uniform(t.runsOf(u.set, u.key), c.At, c.Above, u, false)
			if done || err != nil {
				return err
			}
		}
	}
	return w.walk(&t.trie, 1, t.size(), q)
}
