package template

// expr is an expression node.
type expr interface {
	eval(s *state) (Value, error)
}

// stmt is a statement node; executing it appends to the state's output.
type stmt interface {
	exec(s *state) error
}

type (
	literal  struct{ v Value }
	nameExpr struct{ name string }
	listExpr struct {
		items []expr
		tuple bool
	}
	mapExpr struct{ keys, vals []expr }
	// attrExpr is a.name, itemExpr a[key], sliceExpr a[from:to:step].
	attrExpr struct {
		of   expr
		name string
	}
	itemExpr  struct{ of, key expr }
	sliceExpr struct{ of, from, to, step expr } // nil where omitted
	callExpr  struct {
		of   expr
		args callArgs
		line int
	}
	filterExpr struct {
		of   expr // nil for the text of a block
		name string
		args callArgs
		line int
	}
	testExpr struct {
		of   expr
		name string
		args callArgs
		not  bool
		line int
	}
	unaryExpr struct {
		op string
		of expr
	}
	binaryExpr struct {
		op   string
		a, b expr
		line int
	}
	compareExpr struct {
		of   expr
		ops  []string
		with []expr
		line int
	}
	condExpr struct{ cond, yes, no expr } // no is nil where omitted
)

// callArgs are the arguments of a call.
type callArgs struct {
	pos    []expr
	names  []string
	named  []expr
	spread expr // *args
	merge  expr // **kwargs
}

type (
	textStmt  struct{ text string }
	printStmt struct {
		of   expr
		line int
	}
	ifStmt struct {
		conds  []expr
		bodies [][]stmt
		other  []stmt
	}
	forStmt struct {
		target target
		in     expr
		cond   expr // nil where omitted
		body   []stmt
		other  []stmt
		// recursive: the body may call loop with another iterable.
		recursive bool
		line      int
	}
	setStmt struct {
		target target
		to     expr // nil for a block
		body   []stmt
		filter expr // applied to the block's text; nil for none
		line   int
	}
	macroStmt struct {
		name     string
		params   []string
		defaults []expr // nil for a parameter without a default
		body     []stmt
		takes    uses
	}
	callStmt struct {
		params   []string
		defaults []expr
		call     *callExpr
		body     []stmt
		takes    uses
		line     int
	}
	filterStmt struct {
		filter expr
		body   []stmt
		line   int
	}
	withStmt struct {
		names  []string
		values []expr
		body   []stmt
	}
	// blockStmt is a part with its own scope: generation … endgeneration, or a block, whose
	// text self.name() renders again.
	blockStmt struct {
		name string // empty for generation
		body []stmt
	}
	breakStmt    struct{}
	continueStmt struct{}
)

// uses records which of the special variables (varargs, kwargs, caller) the body of a macro
// reads. A macro that does not read them refuses the arguments that they would hold.
type uses struct{ varargs, kwargs, caller bool }

// target is what set and for assign to: a name, an attribute of a namespace, or several of
// them.
type target struct {
	name  string
	attr  string // attribute of name, which then is a namespace
	items []target
}
