package automaton

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
)

// Stack is a set of call stacks, in the form of a graph (a graph-structured stack). It is
// immutable and interned, so that equal sets are the same pointer.
type Stack struct {
	id     uint32
	Frames []frame // ordered by ret's id, without duplicates
	Ends   uint8   // kinds of empty stacks in the set
	depth  int32   // of the deepest stack
}

// frame is a pending return: the state in which the caller continues, and the stacks below.
type frame struct {
	Ret   *State
	Below *Stack
	role  ast.Role // of the called rule
}

const (
	EndsText    = 1 << iota // no rule is open: the text may end
	endsUnknown             // what is below is not known
)

type pushKey struct {
	ret, below uint32
	role       ast.Role
}

// stacks interns stacks.
type stacks struct {
	next   uint32
	pushed map[pushKey]*Stack
	merged map[string]*Stack
	Bottom *Stack
	// unknown is below the walk of a mask that must hold for every stack.
	Unknown *Stack
}

func newStacks() *stacks {
	return &stacks{
		next:    2,
		pushed:  map[pushKey]*Stack{},
		merged:  map[string]*Stack{},
		Bottom:  &Stack{id: 0, Ends: EndsText},
		Unknown: &Stack{id: 1, Ends: endsUnknown},
	}
}

// forget drops the interned stacks. Those in use stay valid, but duplicates may arise.
func (s *stacks) forget() {
	clear(s.pushed)
	clear(s.merged)
}

func (s *stacks) size() int { return len(s.pushed) + len(s.merged) }

func (s *stacks) push(ret *State, below *Stack, role ast.Role) *Stack {
	key := pushKey{ret.id, below.id, role}
	if t := s.pushed[key]; t != nil {
		return t
	}
	t := &Stack{id: s.next, Frames: []frame{{ret, below, role}}, depth: below.depth + 1}
	s.next++
	s.pushed[key] = t
	return t
}

// union returns the set of the stacks of a and b.
func (s *stacks) union(a, b *Stack) *Stack {
	if a == b {
		return a
	}
	frames := make([]frame, 0, len(a.Frames)+len(b.Frames))
	i, j := 0, 0
	for i < len(a.Frames) && j < len(b.Frames) {
		switch cmp.Or(cmp.Compare(a.Frames[i].Ret.id, b.Frames[j].Ret.id),
			cmp.Compare(a.Frames[i].role, b.Frames[j].role)) {
		case -1:
			frames = append(frames, a.Frames[i])
			i++
		case 1:
			frames = append(frames, b.Frames[j])
			j++
		default:
			frames = append(frames, frame{a.Frames[i].Ret, s.union(a.Frames[i].Below, b.Frames[j].Below),
				a.Frames[i].role})
			i++
			j++
		}
	}
	frames = append(append(frames, a.Frames[i:]...), b.Frames[j:]...)
	ends := a.Ends | b.Ends
	switch {
	case len(frames) == 0 && ends == EndsText:
		return s.Bottom
	case len(frames) == 0 && ends == endsUnknown:
		return s.Unknown
	case len(frames) == 1 && ends == 0:
		return s.push(frames[0].Ret, frames[0].Below, frames[0].role)
	case ends == a.Ends && slices.Equal(frames, a.Frames):
		return a
	case ends == b.Ends && slices.Equal(frames, b.Frames):
		return b
	}
	key := []byte{ends}
	depth := int32(0)
	for _, f := range frames {
		key = binary.LittleEndian.AppendUint32(append(key, byte(f.role)), f.Ret.id)
		key = binary.LittleEndian.AppendUint32(key, f.Below.id)
		depth = max(depth, f.Below.depth+1)
	}
	if t := s.merged[string(key)]; t != nil {
		return t
	}
	t := &Stack{id: s.next, Frames: frames, Ends: ends, depth: depth}
	s.next++
	s.merged[string(key)] = t
	return t
}
