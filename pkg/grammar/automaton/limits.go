package automaton

// Bounds on what one grammar may cost, whatever its text. They are counts, not
// times, so that a grammar is taken or refused alike everywhere.
const (
	maxClasses     = 4_000 // character classes of a grammar
	maxClassStates = 8_000 // of one character class
	maxItems       = 4_000 // positions in the program that a state may stand for
	maxConfigs     = 512   // ways to read a text at once
	maxDepth       = 4_000 // open rules
)

// What a grammar may cost while it runs, in items looked at: so many at first, and
// more with every token, so that no grammar holds up those who share its sampler.
const (
	firstWork = 1_500_000
	TokenWork = 60_000
	maxWork   = 3_000_000
)

const (
	MaxKept   = 12 << 20 // bytes of states and masks kept of a grammar
	maxStacks = 100_000  // stacks kept of a grammar
)
