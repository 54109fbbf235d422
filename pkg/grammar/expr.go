package grammar

// Grammar is a language: rules of which one is the root. It is what the front
// ends make (GBNF, Schema, Regex, Choices, Tags) and what Compile takes. It never
// changes once made.
type Grammar struct {
	rules []rule
	root  int
	kind  string // the front end, for errors
}

// rule is a named expression. line is where it stands in the source, or 0.
type rule struct {
	name string
	body *expr
	line int
	// apart keeps the rule from being copied into its callers, so that all of
	// them share its states and their masks.
	apart bool
}

type exprOp uint8

const (
	opEmpty  exprOp = iota // the empty text
	opFail                 // nothing
	opChar                 // one character of set, spelled as enc says
	opSeq                  // subs one after the other
	opAlt                  // one of subs
	opRepeat               // subs[0] from min to max times; max < 0 is no bound
	opRule                 // the rule of that index
	opAuto                 // a text of the automaton, its characters spelled as enc says
)

// encoding is how a character is spelled in bytes.
type encoding uint8

const (
	plainUTF8 encoding = iota
	// jsonCanonical is the inside of a JSON string: plain where JSON allows it,
	// else the short escape or \u00XX; characters from U+0080 also as \uXXXX.
	jsonCanonical
	// jsonAny is the inside of a JSON string with every spelling JSON has.
	jsonAny
)

// expr is a node of a rule's body.
type expr struct {
	op       exprOp
	enc      encoding
	set      runeSet
	subs     []*expr
	min, max int
	rule     int
	auto     *runeAuto
}

func empty() *expr { return &expr{op: opEmpty} }

func fail() *expr { return &expr{op: opFail} }

func char(set runeSet, enc encoding) *expr {
	if len(set) == 0 {
		return fail()
	}
	return &expr{op: opChar, set: set, enc: enc}
}

// literal is a text, character by character.
func literal(text string, enc encoding) *expr {
	var subs []*expr
	for _, r := range text {
		subs = append(subs, char(oneRune(r), enc))
	}
	return seq(subs...)
}

// lit is a text as it stands.
func lit(text string) *expr { return literal(text, plainUTF8) }

func seq(subs ...*expr) *expr {
	var out []*expr
	for _, s := range subs {
		switch s.op {
		case opEmpty:
		case opFail:
			return fail()
		case opSeq:
			out = append(out, s.subs...)
		default:
			out = append(out, s)
		}
	}
	switch len(out) {
	case 0:
		return empty()
	case 1:
		return out[0]
	}
	return &expr{op: opSeq, subs: out}
}

func alt(subs ...*expr) *expr {
	var out []*expr
	for _, s := range subs {
		switch s.op {
		case opFail:
		case opAlt:
			out = append(out, s.subs...)
		default:
			out = append(out, s)
		}
	}
	switch len(out) {
	case 0:
		return fail()
	case 1:
		return out[0]
	}
	return &expr{op: opAlt, subs: out}
}

// repeat is e from least to most times; most < 0 is no bound.
func repeat(e *expr, least, most int) *expr {
	switch {
	case most == 0 || e.op == opEmpty:
		return empty()
	case e.op == opFail && least == 0:
		return empty()
	case e.op == opFail:
		return e
	case least == 1 && most == 1:
		return e
	}
	return &expr{op: opRepeat, subs: []*expr{e}, min: least, max: most}
}

func optional(e *expr) *expr { return repeat(e, 0, 1) }

func star(e *expr) *expr { return repeat(e, 0, -1) }

func ref(rule int) *expr { return &expr{op: opRule, rule: rule} }

func auto(a *runeAuto, enc encoding) *expr { return &expr{op: opAuto, auto: a, enc: enc} }
