package automaton

// Bounds on what one grammar may cost, whatever its text. They are counts, not
// times, so that a grammar is taken or refused alike everywhere.
const (
	maxClasses     = 4_000 // character classes of a grammar
	maxClassStates = 8_000 // of one character class
	maxItems       = 4_000 // items of one state
	maxConfigs     = 512   // configurations of one position
	maxDepth       = 4_000 // nested rule calls
)

// The work that a grammar may cost while it runs, in items visited: a first allowance, and
// more with every token, so that no grammar delays the other users of its sampler.
const (
	firstWork = 1_500_000
	TokenWork = 60_000
	maxWork   = 3_000_000
)

const (
	MaxKept   = 12 << 20 // bytes of states and masks that a grammar keeps
	maxStacks = 100_000  // stacks that a grammar keeps
)
