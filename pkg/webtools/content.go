package webtools

import (
	"cmp"
	"slices"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// attribute returns an attribute's value.
func attribute(n *html.Node, name string) (string, bool) {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val, true
		}
	}
	return "", false
}

// titleOf returns the title of a document: that of its title element, or else its first heading with text.
func titleOf(root *html.Node) string {
	heading := ""
	var within *html.Node // the heading that was read last; those within it have no other text
	for n := range root.Descendants() {
		switch {
		case n.Type != html.ElementNode:
		case n.DataAtom == atom.Title && n.Namespace == "":
			if text := oneLine(innerText(n)); text != "" {
				return text
			}
		case n.DataAtom == atom.H1 && heading == "" && !below(n, within):
			within, heading = n, oneLine(innerText(n))
		}
	}
	return heading
}

// below reports whether a node is below another one.
func below(n, above *html.Node) bool {
	for p := n.Parent; p != nil && above != nil; p = p.Parent {
		if p == above {
			return true
		}
	}
	return false
}

// innerText returns all text below a node.
func innerText(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data)
		}
	}
	return b.String()
}

// silent are elements whose text nobody reads, or that are about the site and not its content.
func silent(n *html.Node) bool {
	if n.Type == html.CommentNode {
		return true
	}
	if n.Type != html.ElementNode {
		return false
	}
	switch n.DataAtom {
	case atom.Script, atom.Style, atom.Noscript, atom.Template, atom.Iframe, atom.Svg, atom.Math, atom.Canvas,
		atom.Object, atom.Embed, atom.Video, atom.Audio, atom.Button, atom.Select, atom.Input, atom.Textarea,
		atom.Dialog, atom.Nav, atom.Footer, atom.Aside, atom.Head, atom.Menu:
		return true
	}
	if _, hidden := attribute(n, "hidden"); hidden {
		return true
	}
	if v, _ := attribute(n, "aria-hidden"); v == "true" {
		return true
	}
	style, _ := attribute(n, "style")
	style = strings.ToLower(strings.ReplaceAll(style, " ", ""))
	if strings.Contains(style, "display:none") || strings.Contains(style, "visibility:hidden") {
		return true
	}
	role, _ := attribute(n, "role")
	return slices.Contains([]string{"navigation", "banner", "contentinfo", "complementary", "search", "dialog", "menu",
		"menubar"}, role)
}

// prune removes the elements that have no content.
func prune(root *html.Node) {
	var gone []*html.Node
	var walk func(*html.Node)
	walk = func(n *html.Node) { // the parser bounds the depth
		for c := range n.ChildNodes() {
			if silent(c) {
				gone = append(gone, c)
			} else {
				walk(c)
			}
		}
	}
	walk(root)
	for _, n := range gone {
		n.Parent.RemoveChild(n)
	}
}

// weight is the text below an element, in bytes: all of it, and that of links.
type weight struct{ text, links int }

func (w weight) prose() int { return w.text - w.links }

// weigh returns the weight of every element.
func weigh(root *html.Node) map[*html.Node]weight {
	out := map[*html.Node]weight{}
	var walk func(n *html.Node, link bool) weight
	walk = func(n *html.Node, link bool) weight {
		var w weight
		if n.Type == html.TextNode {
			w.text = len(oneLine(n.Data))
			if link {
				w.links = w.text
			}
			return w
		}
		for c := range n.ChildNodes() {
			got := walk(c, link || n.DataAtom == atom.A)
			w.text += got.text
			w.links += got.links
		}
		if n.Type == html.ElementNode {
			out[n] = w
		}
		return w
	}
	walk(root, false)
	return out
}

const (
	leastContent   = 200 // bytes of prose that an element needs to be the content
	leastParagraph = 25  // bytes of text that a paragraph needs to count
)

// contentOf returns the element with the content of a document. It is the main or article element that has most of the
// text. In a document without one, paragraphs vote for the elements around them, and the winner is widened until it
// has half of the prose: rather too much text than too little.
func contentOf(root *html.Node) *html.Node {
	weights := weigh(root)
	body := root
	for n := range root.Descendants() {
		if n.Type == html.ElementNode && n.DataAtom == atom.Body {
			body = n
			break
		}
	}
	whole := weights[body]
	var best *html.Node
	for n := range root.Descendants() {
		role, _ := attribute(n, "role")
		if n.Type == html.ElementNode && (n.DataAtom == atom.Main || n.DataAtom == atom.Article || role == "main") &&
			(best == nil || weights[n].text > weights[best].text) {
			best = n
		}
	}
	if best != nil && weights[best].prose() >= leastContent && 2*weights[best].prose() >= whole.prose() {
		return best
	}
	votes := map[*html.Node]float64{}
	var order []*html.Node // the elements with votes, in the order of the document
	for n := range root.Descendants() {
		switch {
		case n.Type != html.ElementNode || weights[n].text < leastParagraph:
			continue
		case n.DataAtom != atom.P && n.DataAtom != atom.Pre && n.DataAtom != atom.Blockquote && n.DataAtom != atom.Li:
			continue
		}
		vote := float64(weights[n].prose()) / float64(weights[n].text)
		vote *= 1 + min(float64(weights[n].text)/100, 3)
		share := 1.0
		for p := n.Parent; p != nil && share > 0.2 && p.Type == html.ElementNode; p = p.Parent {
			if _, known := votes[p]; !known {
				order = append(order, p)
			}
			votes[p] += vote * share
			share /= 2
		}
	}
	if len(order) == 0 {
		return body
	}
	best = slices.MaxFunc(order, func(a, b *html.Node) int { return cmp.Compare(votes[a], votes[b]) })
	for best != body && best.Parent != nil && best.Parent.Type == html.ElementNode &&
		(weights[best].prose() < leastContent || 2*weights[best].prose() < whole.prose()) {
		best = best.Parent
	}
	return best
}
