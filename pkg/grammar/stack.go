package grammar

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// stack is a set of stacks of open rules, the ways in which the text so far may
// have come here. It is shared and never changes; equal sets are one object, so
// that comparing them is comparing pointers.
type stack struct {
	id     uint32
	frames []frame // by the id of ret, each once
	ends   uint8   // which kinds of empty stack are in the set
	depth  int32   // of the deepest
}

// frame is an open rule: where to go on when the called one is done, and what is
// open below it.
type frame struct {
	ret   *state
	below *stack
	role  role // of the called rule
}

const (
	endsText    = 1 << iota // nothing is open: the text may end
	endsUnknown             // what lies below is not known
)

type pushKey struct {
	ret, below uint32
	role       role
}

// stacks keeps each stack once.
type stacks struct {
	next   uint32
	pushed map[pushKey]*stack
	merged map[string]*stack
	bottom *stack
	// unknown stands below a mask's walk that holds for any stack.
	unknown *stack
}

func newStacks() *stacks {
	return &stacks{
		next:    2,
		pushed:  map[pushKey]*stack{},
		merged:  map[string]*stack{},
		bottom:  &stack{id: 0, ends: endsText},
		unknown: &stack{id: 1, ends: endsUnknown},
	}
}

// forget drops what is kept; stacks in use stay good, but may come to exist twice.
func (s *stacks) forget() {
	clear(s.pushed)
	clear(s.merged)
}

func (s *stacks) size() int { return len(s.pushed) + len(s.merged) }

func (s *stacks) push(ret *state, below *stack, role role) *stack {
	key := pushKey{ret.id, below.id, role}
	if t := s.pushed[key]; t != nil {
		return t
	}
	t := &stack{id: s.next, frames: []frame{{ret, below, role}}, depth: below.depth + 1}
	s.next++
	s.pushed[key] = t
	return t
}

// union is the stacks of a and those of b.
func (s *stacks) union(a, b *stack) *stack {
	if a == b {
		return a
	}
	frames := make([]frame, 0, len(a.frames)+len(b.frames))
	i, j := 0, 0
	for i < len(a.frames) && j < len(b.frames) {
		switch cmp.Or(cmp.Compare(a.frames[i].ret.id, b.frames[j].ret.id), cmp.Compare(a.frames[i].role, b.frames[j].role)) {
		case -1:
			frames = append(frames, a.frames[i])
			i++
		case 1:
			frames = append(frames, b.frames[j])
			j++
		default:
			frames = append(frames, frame{a.frames[i].ret, s.union(a.frames[i].below, b.frames[j].below), a.frames[i].role})
			i++
			j++
		}
	}
	frames = append(append(frames, a.frames[i:]...), b.frames[j:]...)
	ends := a.ends | b.ends
	switch {
	case len(frames) == 0 && ends == endsText:
		return s.bottom
	case len(frames) == 0 && ends == endsUnknown:
		return s.unknown
	case len(frames) == 1 && ends == 0:
		return s.push(frames[0].ret, frames[0].below, frames[0].role)
	case ends == a.ends && slices.Equal(frames, a.frames):
		return a
	case ends == b.ends && slices.Equal(frames, b.frames):
		return b
	}
	key := []byte{ends}
	depth := int32(0)
	for _, f := range frames {
		key = binary.LittleEndian.AppendUint32(append(key, byte(f.role)), f.ret.id)
		key = binary.LittleEndian.AppendUint32(key, f.below.id)
		depth = max(depth, f.below.depth+1)
	}
	if t := s.merged[string(key)]; t != nil {
		return t
	}
	t := &stack{id: s.next, frames: frames, ends: ends, depth: depth}
	s.next++
	s.merged[string(key)] = t
	return t
}
