package tags

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/charset"
)

// Tag is a part of a text with a grammar of its own: after Begin comes a text of Body, then End.
type Tag struct {
	Begin string
	Body  *ast.Grammar
	End   string
}

// Options says how tags are placed in the text around them.
type Options struct {
	// Triggers are texts that open a tag. Free text never contains one; once one is
	// written, the text must continue as the Begin of some tag. Every Begin must start
	// with a trigger. Without triggers, the Begins are the triggers.
	Triggers []string
	// Required demands at least one tag.
	Required bool
	// Single ends the text after the first tag.
	Single bool
	// Only allows no free text: only tags, with Separator between them.
	Only      bool
	Separator string
	// NotFirst are characters that the free text must not start with, not even after
	// white space.
	NotFirst string
}

// New returns the grammar of free text with tags in it, such as a model's tool calls: free
// text that contains no trigger, then what the tags allow, then free text again. It returns
// an *ast.SyntaxError for tags that contradict the options, and an *ast.LimitError.
func New(tags []Tag, o Options) (*ast.Grammar, error) {
	if err := checkTags(tags, o); err != nil {
		return nil, err
	}
	out := &ast.Grammar{Rules: []ast.Rule{{Name: "root"}}, Kind: "tags"}
	bodies := map[*ast.Grammar]*ast.Expr{}
	built := make([]builtTag, len(tags))
	for i, t := range tags {
		body, ok := bodies[t.Body]
		if !ok {
			var err error
			if body, err = out.Embed(t.Body); err != nil {
				return nil, err
			}
			bodies[t.Body] = body
		}
		built[i] = builtTag{begin: t.Begin, rest: ast.Seq(body, ast.Text(t.End))}
	}
	root, err := buildTags(built, o)
	if err != nil {
		return nil, err
	}
	out.Rules[0].Body = root
	return out, nil
}

func checkTags(tags []Tag, o Options) error {
	fail := func(format string, args ...any) error {
		return &ast.SyntaxError{Kind: "tags", Msg: fmt.Sprintf(format, args...)}
	}
	if len(tags) == 0 {
		return fail("list tags: want at least one")
	}
	for i, t := range tags {
		switch {
		case t.Begin == "":
			return fail("read tag %d: its begin is empty", i)
		case t.Body == nil:
			return fail("read tag %d: it has no body", i)
		case !utf8.ValidString(t.Begin) || !utf8.ValidString(t.End):
			return fail("read tag %d: it is not valid UTF-8", i)
		}
	}
	for i, trigger := range o.Triggers {
		if trigger == "" || !utf8.ValidString(trigger) {
			return fail("read trigger %d: want text", i)
		}
	}
	if !utf8.ValidString(o.Separator) {
		return fail("read the separator: it is not valid UTF-8")
	}
	return nil
}

// builtTag is a tag as an expression.
type builtTag struct {
	begin   string
	control bool      // begin spells a control token: it is its own trigger
	rest    *ast.Expr // the body and the end
}

func (t *builtTag) whole() *ast.Expr {
	if t.control {
		return ast.Seq(ast.Control(t.begin), t.rest)
	}
	return ast.Seq(ast.Text(t.begin), t.rest)
}

// buildTags builds the text around the tags. Free text is the states of an automaton that finds
// the triggers (Aho and Corasick 1975). A state in which a trigger ends has no free
// continuation: only the rest of a tag that starts with that trigger leads on.
func buildTags(tags []builtTag, o Options) (*ast.Expr, error) {
	if o.Only {
		return onlyTags(tags, o), nil
	}
	triggers := o.Triggers
	if len(triggers) == 0 {
		for _, t := range tags {
			if !t.control {
				triggers = append(triggers, t.begin)
			}
		}
	}
	for _, t := range tags {
		if !t.control && !slices.ContainsFunc(triggers,
			func(trigger string) bool { return strings.HasPrefix(t.begin, trigger) }) {
			return nil, &ast.SyntaxError{Kind: "tags",
				Msg: fmt.Sprintf("read tag %q: its begin does not start with a trigger", t.begin)}
		}
	}
	a, err := newSearch(triggers)
	if err != nil {
		return nil, err
	}
	g := &ast.Graph{}
	start := -1
	if o.NotFirst != "" {
		start = g.Add()
		g.States[start].Final = !o.Required
	}
	free := func(final bool) []int { // the states of free text
		ids := make([]int, len(a.nodes))
		for i, n := range a.nodes {
			ids[i] = g.Add()
			g.States[ids[i]].Final = final && len(n.found) == 0
		}
		return ids
	}
	connect := func(states []int, to int) (open int) {
		open = g.Add() // where a control token may come
		for _, t := range tags {
			if t.control {
				g.Edge(open, t.whole(), to)
			}
		}
		for i, n := range a.nodes {
			for _, found := range n.found {
				for _, t := range tags {
					if rest, ok := strings.CutPrefix(t.begin, found); ok && !t.control {
						g.Edge(states[i], ast.Seq(ast.Text(rest), t.rest), to)
					}
				}
			}
			if len(n.found) > 0 {
				continue
			}
			if len(g.States[open].Edges) > 0 {
				g.Edge(states[i], nil, open)
			}
			for _, s := range a.steps(i) {
				g.Edge(states[i], ast.Char(s.set, ast.PlainUTF8), states[s.to])
			}
		}
		return open
	}
	before := free(!o.Required)
	if start >= 0 {
		for _, s := range a.firstSteps(o.NotFirst) {
			to := start
			if s.to >= 0 {
				to = before[s.to]
			}
			g.Edge(start, ast.Char(s.set, ast.PlainUTF8), to)
		}
	}
	open := 0
	switch {
	case o.Single:
		end := g.Add()
		g.States[end].Final = true
		open = connect(before, end)
	case o.Required:
		after := free(true)
		open = connect(before, after[0])
		connect(after, after[0])
	default:
		open = connect(before, before[0])
	}
	if start >= 0 && len(g.States[open].Edges) > 0 {
		g.Edge(start, nil, open)
	}
	return g.Expr(), nil
}

// onlyTags builds tags without free text.
func onlyTags(tags []builtTag, o Options) *ast.Expr {
	subs := make([]*ast.Expr, len(tags))
	for i, t := range tags {
		subs[i] = t.whole()
	}
	one := ast.Alt(subs...)
	out := one
	if !o.Single {
		out = ast.Seq(one, ast.Star(ast.Seq(ast.Text(o.Separator), one)))
	}
	if !o.Required {
		out = ast.Optional(out)
	}
	return out
}

// search is an Aho-Corasick automaton over the triggers.
type search struct {
	nodes []searchNode
	runes []rune // of all triggers, ascending
}

type searchNode struct {
	next  map[rune]int
	fall  int      // failure link: the longest proper suffix that is a prefix of a trigger
	found []string // triggers that end here
}

// searchStep is a set of characters and the node that they lead to.
type searchStep struct {
	set charset.Set
	to  int
}

const maxSearch = 100_000 // nodes times characters of triggers

func newSearch(triggers []string) (*search, error) {
	a := &search{nodes: []searchNode{{next: map[rune]int{}}}}
	for _, trigger := range triggers {
		at := 0
		for _, r := range trigger {
			a.runes = append(a.runes, r)
			to, ok := a.nodes[at].next[r]
			if !ok {
				to = len(a.nodes)
				a.nodes = append(a.nodes, searchNode{next: map[rune]int{}})
				a.nodes[at].next[r] = to
			}
			at = to
		}
		if !slices.Contains(a.nodes[at].found, trigger) {
			a.nodes[at].found = append(a.nodes[at].found, trigger)
		}
	}
	slices.Sort(a.runes)
	a.runes = slices.Compact(a.runes)
	if len(a.nodes)*len(a.runes) > maxSearch {
		return nil, &ast.LimitError{What: "characters of triggers", Limit: maxSearch}
	}
	order := []int{0}
	for i := 0; i < len(order); i++ {
		at := order[i]
		for _, r := range a.runes {
			to, ok := a.nodes[at].next[r]
			if !ok {
				continue
			}
			order = append(order, to)
			if at != 0 {
				a.nodes[to].fall = a.step(a.nodes[at].fall, r)
			}
			for _, found := range a.nodes[a.nodes[to].fall].found {
				if !slices.Contains(a.nodes[to].found, found) {
					a.nodes[to].found = append(a.nodes[to].found, found)
				}
			}
		}
	}
	return a, nil
}

// step returns the node after r.
func (a *search) step(at int, r rune) int {
	for {
		if to, ok := a.nodes[at].next[r]; ok {
			return to
		}
		if at == 0 {
			return 0
		}
		at = a.nodes[at].fall
	}
}

// firstSteps lists the steps of the first character of a text: those of node 0 without the
// characters of not. White space stays in the first state, which is -1.
func (a *search) firstSteps(not string) []searchStep {
	spans := make([]charset.Span, 0, len(not))
	for _, r := range not {
		spans = append(spans, charset.Span{Lo: r, Hi: r})
	}
	white := charset.Of(" \t\n\r")
	var out []searchStep
	for _, s := range a.steps(0) {
		set := s.set.Intersect(charset.New(spans...).Negate())
		if s.to == 0 {
			if over := set.Intersect(white); len(over) > 0 {
				out = append(out, searchStep{over, -1})
			}
			set = set.Intersect(white.Negate())
		}
		if len(set) > 0 {
			out = append(out, searchStep{set, s.to})
		}
	}
	return out
}

// steps lists where each character leads from a node.
func (a *search) steps(at int) []searchStep {
	var special []charset.Span
	over := map[int][]charset.Span{}
	var order []int
	for _, r := range a.runes {
		special = append(special, charset.Span{Lo: r, Hi: r})
		to := a.step(at, r)
		if over[to] == nil {
			order = append(order, to)
		}
		over[to] = append(over[to], charset.Span{Lo: r, Hi: r})
	}
	if over[0] == nil {
		order = append(order, 0)
	}
	over[0] = append(over[0], charset.New(special...).Negate()...)
	out := make([]searchStep, len(order))
	for i, to := range order {
		out[i] = searchStep{charset.New(over[to]...), to}
	}
	return out
}
