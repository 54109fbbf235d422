package grammar

import (
	"math/bits"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Mask sets dst to the tokens that may come: bit id%64 of word id/64 for every id,
// those that end a text where it may end. dst has Vocabulary.Words words, and what
// was in it is lost. It returns a *LimitError where the grammar asks for too much,
// and then dst allows nothing.
func (m *Matcher) Mask(dst []uint64) error {
	v := m.c.vocab
	if v == nil {
		return fault.New(fault.FailedPrecondition, "make a mask: the grammar was compiled without a vocabulary")
	}
	if len(dst) != v.Words() {
		return fault.New(fault.Invalid, "make a mask: %d words for a vocabulary that needs %d", len(dst), v.Words())
	}
	now := m.now()
	if now.ended {
		clear(dst)
		setBits(dst, v.end)
		return nil
	}
	mach := m.c.m
	mach.mu.Lock()
	mask, err := mach.maskAt(now.position, m.text)
	mach.mu.Unlock()
	if err != nil {
		clear(dst)
		return err
	}
	mask.write(dst)
	if now.canEnd {
		setBits(dst, v.end)
	}
	return nil
}

// write sets dst to the mask.
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

// maskAt is the mask of a position, made when it is first asked for.
func (m *machine) maskAt(p *position, text []byte) (*positionMask, error) {
	if p.mask != nil {
		return p.mask, nil
	}
	m.refresh()
	out := &positionMask{}
	for _, k := range p.kernels {
		if k.mem != nil {
			m.attend(text)
			whole := !k.mem.inside || k.mem.like != nil && len(p.kernels) > 1
			if whole {
				if err := m.wholeMask(out, k); err != nil {
					return nil, err
				}
				continue
			}
			if k.mem.like != nil {
				var err error
				if out.never, err = m.repeats(k); err != nil {
					return nil, err
				}
			}
		}
		mask, err := m.maskOf(k.at)
		if err != nil {
			return nil, err
		}
		switch {
		case len(mask.not) == 0:
			out.sets = append(out.sets, mask.sets...)
			out.lists = append(append(out.lists, mask.lists...), mask.also...)
		case len(p.kernels) == 1:
			out.sets, out.lists, out.not, out.also = mask.sets, mask.lists, mask.not, mask.also
		default:
			set := make([]uint64, m.vocab.Words())
			(&positionMask{sets: mask.sets, lists: mask.lists, not: mask.not, also: mask.also}).write(set)
			out.sets = append(out.sets, set)
			m.bytes += 8 * len(set)
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
		m.bytes += 8 * len(set)
	}
	m.bytes += 100 + 24*(len(out.sets)+len(out.lists))
	p.mask = out
	return out, nil
}

// wholeMask adds the tokens that may come at a config, looked at one by one.
func (m *machine) wholeMask(out *positionMask, k config) error {
	p, err := m.at(k.at, k.above, k.mem)
	if err != nil {
		return err
	}
	w := &walker{m: m, out: &stateMask{}, ids: m.ids[:0]}
	err = w.walk(m.vocab.all, 0, m.vocab.all.size(), p)
	m.ids = w.ids
	w.finish()
	out.sets = append(out.sets, w.out.sets...)
	out.lists = append(out.lists, w.out.lists...)
	m.spent += w.steps / 8
	return err
}

// beyond is the tokens that end the rule of a config's state and go on with what
// lies below it.
func (m *machine) beyond(mask *stateMask, k config) ([]int32, error) {
	if len(mask.pops) == 0 && !mask.loose {
		return nil, nil
	}
	m.exact = false
	below, err := m.below(k.above, k.mem)
	if err != nil || len(below.configs) == 0 {
		return nil, err
	}
	if ids, ok := mask.checked[below]; ok {
		return ids, nil
	}
	w := &walker{m: m, out: &stateMask{}, ids: m.ids[:0]}
	if mask.loose {
		p, err := m.at(k.at, k.above, k.mem)
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
		mask.checked = map[*position][]int32{}
	}
	mask.checked[below] = ids
	m.bytes += 4*len(ids) + 50
	m.spent += w.steps / 8
	return ids, nil
}

// Bounds on what Compile makes beforehand.
const (
	maxPrepared    = 4000    // states
	maxPrepareWork = 100_000 // items looked at, or eight nodes of the vocabulary
)

// prepare makes the masks of the states that are reached first, as far as that is
// cheap; the others are made when they are reached.
func (m *machine) prepare(start *position) {
	var order []*state
	seen := map[*state]bool{}
	visit := func(s *state) {
		if s != m.dead && !seen[s] {
			seen[s] = true
			order = append(order, s)
		}
	}
	for _, k := range start.kernels {
		visit(k.at)
	}
	m.limit = min(m.limit, m.spent+maxPrepareWork)
	defer func() { m.limit = m.credit }()
	for i := 0; i < len(order) && i < maxPrepared && m.spent < m.limit && m.bytes < maxKept/2; i++ {
		s := order[i]
		if _, err := m.maskOf(s); err != nil {
			return // it will come again when it matters
		}
		for _, c := range m.callsOf(s) {
			visit(m.start(c.rule))
			visit(c.ret)
		}
		for _, it := range s.items {
			in := &m.prog.code[it.pc]
			if in.op != doChar {
				continue
			}
			for _, e := range m.prog.classes[in.class].states[it.sub] {
				for n := int(m.classOf[e.lo]); n <= int(m.classOf[e.hi]); n++ {
					visit(m.whole(m.step(s, m.someOf[n])))
				}
			}
		}
	}
}

// whole goes on from a state within a character, on some way, to the end of that:
// few tokens end in between.
func (m *machine) whole(s *state) *state {
	for range 12 {
		i := slices.IndexFunc(s.items, func(it item) bool { return it.sub != 0 })
		if i < 0 {
			return s
		}
		it := s.items[i]
		s = m.step(s, m.prog.classes[m.prog.code[it.pc].class].states[it.sub][0].lo)
	}
	return s
}
