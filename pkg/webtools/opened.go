package webtools

import (
	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// maxSteps bounds the work of the parser for the tags of a page: for each tag the number of elements that are open.
// A large page of 100,000 tags that are nested 30 deep on average needs 3 million, and 20 million take about a second.
const maxSteps = 20_000_000

// maxOpen is where the parser gives up.
const maxOpen = 512

// opened follows which elements the parser has open. It knows the rules by which tags close other elements as far as
// pages without end tags need them; where it errs, it has too many elements rather than too few.
type opened struct {
	elements []element
	steps    int
}

type element struct {
	name string
	atom atom.Atom // 0 for a name that HTML does not know
}

// tag counts the steps of a tag and follows what it opens and closes.
func (o *opened) tag(kind html.TokenType, t html.Token) {
	o.steps += 1 + min(len(o.elements), maxOpen)
	if kind == html.EndTagToken {
		o.end(t)
		return
	}
	for n := len(o.elements); n > 0 && closedBy(t.DataAtom, o.elements[n-1].atom); n-- {
		o.elements = o.elements[:n-1]
	}
	if !isVoid(t.DataAtom) && len(o.elements) < 2*maxOpen {
		o.elements = append(o.elements, element{t.Data, t.DataAtom})
	}
}

// end closes the innermost element with the tag's name. Tags of blocks and tables close what is open within it too,
// which the parser searches in the same way.
func (o *opened) end(t html.Token) {
	block, table := isBlock(t.DataAtom), isTable(t.DataAtom)
	for i := len(o.elements) - 1; i >= 0; i-- {
		e := o.elements[i]
		if e.name == t.Data {
			o.elements = o.elements[:i]
			return
		}
		switch e.atom {
		case atom.Table:
			return
		case atom.Td, atom.Th, atom.Caption, atom.Object, atom.Applet, atom.Marquee, atom.Template:
			if !table {
				return
			}
		}
		if !block && !table {
			return
		}
	}
}

// closedBy reports whether the start tag of an element closes the one that is open.
func closedBy(start, open atom.Atom) bool {
	switch open {
	case atom.P:
		return isBlock(start) || isTable(start)
	case atom.Li:
		return start == atom.Li
	case atom.Dd, atom.Dt:
		return start == atom.Dd || start == atom.Dt
	case atom.Td, atom.Th:
		return start != atom.Table && start != atom.Caption && isTable(start)
	case atom.Tr:
		return start == atom.Tr || start == atom.Tbody || start == atom.Thead || start == atom.Tfoot
	case atom.Tbody, atom.Thead, atom.Tfoot:
		return start == atom.Tbody || start == atom.Thead || start == atom.Tfoot
	case atom.Option:
		return start == atom.Option
	case atom.A:
		return start == atom.A
	}
	return false
}

func isTable(a atom.Atom) bool {
	switch a {
	case atom.Table, atom.Caption, atom.Tbody, atom.Thead, atom.Tfoot, atom.Tr, atom.Td, atom.Th:
		return true
	}
	return false
}

func isBlock(a atom.Atom) bool {
	switch a {
	case atom.Address, atom.Article, atom.Aside, atom.Blockquote, atom.Center, atom.Dd, atom.Details, atom.Dialog,
		atom.Dir, atom.Div, atom.Dl, atom.Dt, atom.Fieldset, atom.Figcaption, atom.Figure, atom.Footer, atom.Form,
		atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6, atom.Header, atom.Hgroup, atom.Li, atom.Main, atom.Menu,
		atom.Nav, atom.Ol, atom.P, atom.Pre, atom.Section, atom.Summary, atom.Ul:
		return true
	}
	return false
}

func isVoid(a atom.Atom) bool {
	switch a {
	case atom.Area, atom.Base, atom.Br, atom.Col, atom.Embed, atom.Hr, atom.Img, atom.Input, atom.Link, atom.Meta,
		atom.Param, atom.Source, atom.Track, atom.Wbr:
		return true
	}
	return false
}

// isRaw reports whether the tokenizer reads the content of an element as text up to its end tag.
func isRaw(a atom.Atom) bool {
	switch a {
	case atom.Iframe, atom.Noembed, atom.Noframes, atom.Noscript, atom.Plaintext, atom.Script, atom.Style, atom.Title,
		atom.Textarea, atom.Xmp:
		return true
	}
	return false
}
