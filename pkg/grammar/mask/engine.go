package mask

import "github.com/lamina-mesh/lamina/pkg/grammar/automaton"

// engine is a machine with masks over a vocabulary.
type engine struct {
	*automaton.Machine
	vocab     *Vocabulary
	ids       []int32               // of the mask under construction
	alike     map[string]*stateMask // masks of states that differ only in distant loop bounds
	asked     map[string]int        // how often states asked for the runs of a set
	seldom    int                   // how many of those requests walk the whole vocabulary instead
	relations map[string][]relation // by the key of a set, then by class

	costs  *costs
	depths map[*automaton.Stack]int64
}

func newEngine(prog *automaton.Program, v *Vocabulary, seldom int) *engine {
	return &engine{Machine: automaton.New(prog), vocab: v, seldom: seldom,
		alike: map[string]*stateMask{}, relations: map[string][]relation{}, asked: map[string]int{}}
}

// stateNotes is what this package attaches to a state.
type stateNotes struct {
	mask *stateMask
	run  uniform
	cost int64 // see completion.go; plus one, or 0 if it is not computed
}

func notes(s *automaton.State) *stateNotes {
	n, ok := s.Notes.(*stateNotes)
	if !ok {
		n = &stateNotes{}
		s.Notes = n
	}
	return n
}

// refresh starts an operation and drops the caches if they are full.
func (m *engine) refresh() {
	m.Renew()
	if m.Full() {
		m.forget()
	}
}

func (m *engine) forget() {
	for _, s := range m.States {
		if n, ok := s.Notes.(*stateNotes); ok {
			n.mask, n.run = nil, uniform{}
		}
	}
	m.Forget()
	clear(m.depths)
	clear(m.alike)
	clear(m.relations)
}
