package ast

// Bounds on what a source may ask for, whatever its notation. They are counts, not
// times, so that a grammar is accepted or refused alike everywhere.
const (
	MaxSource       = 1 << 20 // bytes of a grammar, schema or regular expression
	MaxRules        = 20_000
	MaxInstructions = 100_000 // of the compiled program
	MaxNesting      = 200     // parentheses, or JSON values, inside each other
	MaxRepeat       = 1 << 20 // the largest count of a repetition
)
