package mask

import (
	"math/bits"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar/automaton"
)

// Mask sets dst to the tokens that may follow: bit id%64 of word id/64 for every id,
// including the end tokens if the text may end. dst must have Vocabulary.Words words. It
// returns a *LimitError if the grammar needs too much work, and then dst allows nothing.
func (m *Matcher) Mask(dst []uint64) error {
	v := m.c.vocab
	if v == nil {
		return fault.New(fault.FailedPrecondition, "make a mask: the grammar was compiled without a vocabulary")
	}
	if len(dst) != v.Words() {
		return fault.New(fault.Invalid, "make a mask: got %d words, want %d", len(dst), v.Words())
	}
	now := m.now()
	if now.ended {
		clear(dst)
		setBits(dst, v.end)
		return nil
	}
	mach := m.c.m
	mach.Mu.Lock()
	mask, err := mach.maskAt(now.Position, m.text)
	mach.Mu.Unlock()
	if err != nil {
		clear(dst)
		return err
	}
	mask.write(dst)
	if now.CanEnd {
		setBits(dst, v.end)
	}
	return nil
}

// write writes the mask to dst.
func (p *positionMask) write(dst []uint64) {
	if len(p.sets) == 0 {
		clear(dst)
	} else {
		copy(dst, p.sets[0])
		for _, set := range p.sets[1:] {
			for i, w := range set {
				dst[i] |= w
			}
		}
	}
	for _, ids := range p.lists {
		setBits(dst, ids)
	}
	for _, id := range p.not {
		dst[id>>6] &^= 1 << (id & 63)
	}
	for _, ids := range p.also {
		setBits(dst, ids)
	}
	for _, id := range p.never {
		dst[id>>6] &^= 1 << (id & 63)
	}
}

// Allowed counts the tokens of a mask.
func Allowed(mask []uint64) int {
	n := 0
	for _, w := range mask {
		n += bits.OnesCount64(w)
	}
	return n
}

// maskAt returns the mask of a position, computed on first use: the union of the masks of the
// states of its kernels and, for tokens that leave a state's rule, of what the stack below
// allows.
func (m *engine) maskAt(p *automaton.Position, text []byte) (*positionMask, error) {
	if mask, ok := p.Mask.(*positionMask); ok {
		return mask, nil
	}
	m.refresh()
	out := &positionMask{}
	for _, k := range p.Kernels {
		if k.Mem != nil {
			m.LoadText(text)
			whole := !k.Mem.Inside || k.Mem.Like != nil && len(p.Kernels) > 1
			if whole {
				if err := m.wholeMask(out, k); err != nil {
					return nil, err
				}
				continue
			}
			if k.Mem.Like != nil {
				var err error
				if out.never, err = m.repeats(k); err != nil {
					return nil, err
				}
			}
		}
		mask, err := m.maskOf(k.At)
		if err != nil {
			return nil, err
		}
		switch {
		case len(mask.not) == 0:
			out.sets = append(out.sets, mask.sets...)
			out.lists = append(append(out.lists, mask.lists...), mask.also...)
		case len(p.Kernels) == 1:
			out.sets, out.lists, out.not, out.also = mask.sets, mask.lists, mask.not, mask.also
		default:
			set := make([]uint64, m.vocab.Words())
			(&positionMask{sets: mask.sets, lists: mask.lists, not: mask.not, also: mask.also}).write(set)
			out.sets = append(out.sets, set)
			m.Bytes += 8 * len(set)
		}
		ids, err := m.beyond(mask, k)
		if err != nil {
			return nil, err
		}
		if len(ids) > 0 {
			out.also = append(slices.Clip(out.also), ids)
		}
	}
	if len(out.sets) > 2 {
		set := slices.Clone(out.sets[0])
		for _, other := range out.sets[1:] {
			for i, w := range other {
				set[i] |= w
			}
		}
		out.sets = [][]uint64{set}
		m.Bytes += 8 * len(set)
	}
	m.Bytes += 100 + 24*(len(out.sets)+len(out.lists))
	p.Mask = out
	return out, nil
}

// wholeMask adds the tokens that a configuration allows by a walk of the whole vocabulary.
func (m *engine) wholeMask(out *positionMask, k automaton.Config) error {
	p, err := m.At(k.At, k.Above, k.Mem)
	if err != nil {
		return err
	}
	w := &walker{m: m, out: &stateMask{}, ids: m.ids[:0]}
	err = w.walk(m.vocab.all, 0, m.vocab.all.size(), p)
	m.ids = w.ids
	w.finish()
	out.sets = append(out.sets, w.out.sets...)
	out.lists = append(out.lists, w.out.lists...)
	m.Spent += w.steps / 8
	return err
}

// beyond returns the tokens that end the rule of k's state and continue in its callers. The
// walk of the state has noted the trie nodes at which the rule may end; only what is under
// those is walked here, once for each different position below.
func (m *engine) beyond(mask *stateMask, k automaton.Config) ([]int32, error) {
	if len(mask.pops) == 0 && !mask.loose {
		return nil, nil
	}
	m.Exact = false
	below, err := m.Below(k.Above, k.Mem)
	if err != nil || len(below.Configs) == 0 {
		return nil, err
	}
	if ids, ok := mask.checked[below]; ok {
		return ids, nil
	}
	w := &walker{m: m, out: &stateMask{}, ids: m.ids[:0]}
	if mask.loose {
		p, err := m.At(k.At, k.Above, k.Mem)
		if err == nil {
			err = w.walk(m.vocab.all, 0, m.vocab.all.size(), p)
		}
		if err != nil {
			return nil, err
		}
	} else {
		for i, pop := range mask.pops {
			from := len(w.ids)
			if err := w.walk(pop.t, pop.node+1, pop.t.skip[pop.node], below); err != nil {
				return nil, err
			}
			if i < mask.lent && len(mask.except) > 0 {
				w.ids = append(w.ids[:from], slices.DeleteFunc(w.ids[from:], func(id int32) bool {
					_, found := slices.BinarySearch(mask.except, id)
					return found
				})...)
			}
		}
	}
	m.ids = w.ids
	ids := slices.Clone(w.ids)
	if mask.checked == nil {
		mask.checked = map[*automaton.Position][]int32{}
	}
	mask.checked[below] = ids
	m.Bytes += 4*len(ids) + 50
	m.Spent += w.steps / 8
	return ids, nil
}

// Bounds on the masks that Compile computes in advance.
const (
	maxPrepared    = 4000    // states
	maxPrepareWork = 100_000 // items visited; eight nodes of the vocabulary count as one
)

// prepare computes the masks of the first states in breadth-first order while that is cheap.
// The others are computed when they are reached.
func (m *engine) prepare(start *automaton.Position) {
	var order []*automaton.State
	seen := map[*automaton.State]bool{}
	visit := func(s *automaton.State) {
		if s != m.Dead && !seen[s] {
			seen[s] = true
			order = append(order, s)
		}
	}
	for _, k := range start.Kernels {
		visit(k.At)
	}
	m.Limit = min(m.Limit, m.Spent+maxPrepareWork)
	defer func() { m.Limit = m.Credit }()
	for i := 0; i < len(order) && i < maxPrepared && m.Spent < m.Limit && m.Bytes < automaton.MaxKept/2; i++ {
		s := order[i]
		if _, err := m.maskOf(s); err != nil {
			return // the error comes again if it matters
		}
		for _, c := range m.CallsOf(s) {
			visit(m.Start(c.Rule))
			visit(c.Ret)
		}
		for _, it := range s.Items {
			in := &m.Prog.Code[it.Pc]
			if in.Op != automaton.OpChar {
				continue
			}
			for _, e := range m.Prog.Classes[in.Class].States[it.Sub] {
				for n := int(m.ClassOf[e.Lo]); n <= int(m.ClassOf[e.Hi]); n++ {
					visit(m.whole(m.Step(s, m.SomeOf[n])))
				}
			}
		}
	}
}

// whole returns a state at the end of the character that s is inside of: few tokens end
// inside a character.
func (m *engine) whole(s *automaton.State) *automaton.State {
	for range 12 {
		i := slices.IndexFunc(s.Items, func(it automaton.Item) bool { return it.Sub != 0 })
		if i < 0 {
			return s
		}
		it := s.Items[i]
		s = m.Step(s, m.Prog.Classes[m.Prog.Code[it.Pc].Class].States[it.Sub][0].Lo)
	}
	return s
}

// repeats lists the tokens that would repeat an earlier item, or leave no other continuation,
// in a configuration whose item equals the beginning of an earlier one.
func (m *engine) repeats(c automaton.Config) ([]int32, error) {
	p, err := m.At(c.At, c.Above, c.Mem)
	if err != nil {
		return nil, err
	}
	var out []int32
	t := m.vocab.all
	// After the text of an earlier item, tokens that continue as if the item had ended are
	// wrong, too, so that every byte is followed there.
	var walk func(from, to int32, p *automaton.Position, like *automaton.Seen, every bool) error
	walk = func(from, to int32, p *automaton.Position, like *automaton.Seen, every bool) error {
		for i := from; i < to; i = t.skip[i] {
			next := like.Child(t.b[i])
			if next == nil && !every {
				continue
			}
			q, err := m.Follow(p, t.b[i])
			if err != nil {
				return err
			}
			if q == m.Nowhere {
				out = append(out, t.ids[t.first[i]:t.first[t.skip[i]]]...)
				continue
			}
			m.PushByte(t.b[i])
			err = walk(i+1, t.skip[i], q, next, every || next.Final)
			m.PopByte()
			if err != nil {
				return err
			}
		}
		return nil
	}
	err = walk(0, t.size(), p, c.Mem.Like, c.Mem.Like.Final)
	return out, err
}
