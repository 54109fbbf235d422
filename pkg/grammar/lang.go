package grammar

import "slices"

// lang is a set of strings given by a regular expression. Its automaton is made
// when it is first needed; a lang belongs to one goroutine.
type lang struct {
	key   string // equal for equal languages
	node  *re
	whole bool // the expression matches the whole string
	auto  *dfa
	err   error
}

// patternLang is the strings in which a pattern is found.
func patternLang(pattern string) (*lang, error) {
	n, err := parseDialect(pattern, true)
	return &lang{key: "pattern " + pattern, node: n}, err
}

// textsLang is the given strings.
func textsLang(texts []string) (*lang, error) {
	list := &value{kind: isArray}
	for _, t := range slices.Sorted(slices.Values(texts)) {
		list.list = append(list.list, &value{kind: isString, text: t})
	}
	d, err := textsDFA(texts)
	return &lang{key: "texts " + list.canonical(), auto: d}, err
}

// expr is the language's strings in an encoding.
func (l *lang) expr(enc encoding) (*expr, error) {
	if l.node == nil {
		return l.auto.graph(enc), nil
	}
	return regexExpr(l.node, l.whole, enc)
}

func (l *lang) dfa() (*dfa, error) {
	if l.auto == nil && l.err == nil {
		if l.auto, l.err = regexDFA(l.node, l.whole); l.err == nil {
			l.auto = l.auto.minimal()
		}
	}
	return l.auto, l.err
}

// accepts says whether the language holds text. Where its automaton is too large
// it says no, and whoever needs the automaton itself gets the error.
func (l *lang) accepts(text string) bool {
	d, err := l.dfa()
	return err == nil && d.accepts(text)
}
