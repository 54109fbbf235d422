package grammar

// runeAuto is a deterministic automaton over code points without useless states:
// every state is reached from the first and reaches an end. State 0 is the first.
type runeAuto struct {
	states []autoState
}

type autoState struct {
	edges []autoEdge // sets of one state do not overlap
	final bool
}

type autoEdge struct {
	set runeSet
	to  int
}
