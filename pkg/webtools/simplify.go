package webtools

import (
	"slices"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// kept are the attributes that something here reads.
var kept = []string{"hidden", "aria-hidden", "style", "role", "alt"}

// simplify returns an HTML document without what nothing here reads and what lets a small page become a huge tree. The
// parser copies all open formatting elements, with their attributes, into every paragraph, so that 2 MiB of a hostile
// page could need tens of gigabytes. Left out are formatting elements (their content stays), most attributes, and
// elements within which the parser reads tags where this function would see raw text: svg, math and select.
//
// A comment takes the place of what is left out: it keeps the text on both sides from forming a new tag.
//
// For each tag the parser searches the elements that are open, up to 512, so that a deep page with many tags could take
// a minute. Tags have a budget of steps, which no page but a hostile one needs. What comes after it keeps only its
// text.
func simplify(document string) string {
	const gap = "<!---->"
	var out strings.Builder
	tokens := html.NewTokenizer(strings.NewReader(document))
	var within atom.Atom // the element that is left out
	depth := 0           // of elements with this name
	var work opened
	raw := false    // the last tag was written and begins text that ends with its end tag
	hidden := false // the last tag was not written and begins such text
	for {
		kind := tokens.Next()
		if kind == html.ErrorToken {
			return out.String()
		}
		over := work.steps > maxSteps && !raw
		if kind != html.StartTagToken && kind != html.SelfClosingTagToken && kind != html.EndTagToken {
			switch {
			case depth > 0 || over && (hidden || kind != html.TextToken):
			case over:
				out.WriteString(html.EscapeString(string(tokens.Text())))
			default:
				out.Write(tokens.Raw())
			}
			continue
		}
		token := tokens.Token()
		switch {
		case depth > 0:
			tokens.NextIsNotRawText()
			switch {
			case token.DataAtom != within:
			case kind == html.StartTagToken:
				depth++
			case kind == html.EndTagToken:
				depth--
			}
		case isApart(token.DataAtom):
			out.WriteString(gap)
			if kind == html.StartTagToken || kind == html.SelfClosingTagToken && token.DataAtom == atom.Select {
				within, depth = token.DataAtom, 1
				tokens.NextIsNotRawText()
			}
		case isFormatting(token.DataAtom):
			out.WriteString(gap)
		case over:
			out.WriteString(" ")
			hidden = kind != html.EndTagToken && isRaw(token.DataAtom)
		default:
			token.Attr = slices.DeleteFunc(token.Attr, func(a html.Attribute) bool {
				return !slices.Contains(kept, a.Key) || a.Key != "alt" && len(a.Val) > maxStyle
			})
			token.Attr = token.Attr[:min(len(token.Attr), len(kept))]
			out.WriteString(token.String())
			work.tag(kind, token)
			raw = kind != html.EndTagToken && isRaw(token.DataAtom)
		}
	}
}

// maxStyle bounds the attributes that decide whether an element is read, in bytes.
const maxStyle = 1000

// isApart reports whether an element is left out with its content.
func isApart(a atom.Atom) bool { return a == atom.Svg || a == atom.Math || a == atom.Select }

// isFormatting reports whether the parser opens an element again in the blocks that follow it. There is only one open
// link at a time, so links may stay: their weight is needed.
func isFormatting(a atom.Atom) bool {
	switch a {
	case atom.B, atom.Big, atom.Code, atom.Em, atom.Font, atom.I, atom.Nobr, atom.S, atom.Small, atom.Strike,
		atom.Strong, atom.Tt, atom.U:
		return true
	}
	return false
}
