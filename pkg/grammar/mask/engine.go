package mask

import "github.com/lamina-mesh/lamina/pkg/grammar/automaton"

// engine is a machine with the masks of its states over a vocabulary.
type engine struct {
	*automaton.Machine
	vocab     *Vocabulary
	ids       []int32               // of the mask in the making
	alike     map[string]*stateMask // of states that differ in far-off counts alone
	asked     map[string]int        // states that asked for the runs of a set
	seldom    int                   // of those, how many go without
	relations map[string][]relation // by the key of a set and the class

	costs  *costs
	depths map[*automaton.Stack]int64
}

func newEngine(prog *automaton.Program, v *Vocabulary, seldom int) *engine {
	return &engine{Machine: automaton.New(prog), vocab: v, seldom: seldom,
		alike: map[string]*stateMask{}, relations: map[string][]relation{}, asked: map[string]int{}}
}

// stateNotes is what is known of a state besides where it leads.
type stateNotes struct {
	mask *stateMask
	run  uniform
	cost int64 // see completion.go; one more than it is, or 0 while it is not known
}

func notes(s *automaton.State) *stateNotes {
	n, ok := s.Notes.(*stateNotes)
	if !ok {
		n = &stateNotes{}
		s.Notes = n
	}
	return n
}

// refresh begins an operation, and forgets what it can where that takes too much.
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
	m.Machine.Forget()
	clear(m.depths)
	clear(m.alike)
	clear(m.relations)
}
