package webtools

import (
	"strconv"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// writer writes elements as plain text: a blank line between blocks, headings with #, items with - or their number,
// rows of tables with | between the cells.
type writer struct {
	out   strings.Builder
	line  strings.Builder // the current line
	mark  string          // what the next line begins with, such as "- "
	blank bool            // a blank line is due before the next line
	lists []int           // number of the next item in each list around; 0 for lists without numbers
	rows  int             // rows around whose cells are written apart
}

// maxRows bounds how often a text is copied from a cell into its row. Deeper tables are read as layout.
const maxRows = 4

// String ends the text and returns it.
func (w *writer) String() string {
	w.end()
	return strings.TrimSpace(w.out.String())
}

// end ends the current line. A line without text is not written.
func (w *writer) end() {
	text := oneLine(w.line.String())
	w.line.Reset()
	if text == "" {
		return
	}
	w.write(w.mark + text)
	w.mark = ""
}

// write writes a line as it is.
func (w *writer) write(line string) {
	if w.blank && w.out.Len() > 0 {
		w.out.WriteString("\n")
	}
	w.blank = false
	w.out.WriteString(line)
	w.out.WriteString("\n")
}

// paragraph ends the line and the paragraph. Lists have no blank lines.
func (w *writer) paragraph() {
	w.end()
	w.blank = len(w.lists) == 0
}

func (w *writer) children(n *html.Node) {
	for c := range n.ChildNodes() {
		w.block(c)
	}
}

// block writes a node with all that is below it.
func (w *writer) block(n *html.Node) {
	if n.Type == html.TextNode {
		w.line.WriteString(n.Data)
		return
	}
	switch n.DataAtom {
	case atom.Br:
		w.end()
	case atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6:
		w.paragraph()
		w.mark = strings.Repeat("#", int(n.Data[1]-'0')) + " "
		w.children(n)
		w.paragraph()
		w.mark = ""
	case atom.Pre:
		w.paragraph()
		if text := strings.Trim(innerText(n), "\n"); strings.TrimSpace(text) != "" {
			w.write("```\n" + text + "\n```")
		}
		w.blank = true
	case atom.Ul, atom.Ol:
		w.list(n)
	case atom.Li:
		w.item(n)
	case atom.Tr:
		w.row(n)
	case atom.Img:
		if alt, _ := attribute(n, "alt"); oneLine(alt) != "" {
			w.line.WriteString(" [image: " + oneLine(alt) + "] ")
		}
	case atom.Dt, atom.Dd, atom.Figcaption, atom.Caption, atom.Summary, atom.Option:
		w.end()
		w.children(n)
		w.end()
	case atom.P, atom.Div, atom.Section, atom.Article, atom.Main, atom.Blockquote, atom.Table, atom.Dl, atom.Header,
		atom.Figure, atom.Details, atom.Address, atom.Hr, atom.Form, atom.Fieldset, atom.Body, atom.Html:
		w.paragraph()
		w.children(n)
		w.paragraph()
	default:
		w.children(n)
	}
}

func (w *writer) list(n *html.Node) {
	if len(w.lists) == 0 {
		w.paragraph()
	} else {
		w.end()
	}
	first := 0
	if n.DataAtom == atom.Ol {
		first = 1
	}
	w.lists = append(w.lists, first)
	w.children(n)
	w.lists = w.lists[:len(w.lists)-1]
	w.end()
	w.blank = len(w.lists) == 0
}

func (w *writer) item(n *html.Node) {
	w.end()
	w.mark = "- "
	if at := len(w.lists) - 1; at >= 0 {
		if w.lists[at] > 0 {
			w.mark = strconv.Itoa(w.lists[at]) + ". "
			w.lists[at]++
		}
		w.mark = strings.Repeat("  ", min(at, 8)) + w.mark
	}
	w.children(n)
	w.end()
	w.mark = ""
}

func (w *writer) row(n *html.Node) {
	w.end()
	var cells []string
	var columns []*html.Node
	for c := range n.ChildNodes() {
		if c.DataAtom == atom.Td || c.DataAtom == atom.Th {
			columns = append(columns, c)
		}
	}
	if len(columns) == 1 || w.rows == maxRows { // a table for the layout
		for _, c := range columns {
			w.children(c)
			w.paragraph()
		}
		return
	}
	for _, c := range columns {
		inner := &writer{rows: w.rows + 1}
		inner.children(c)
		cells = append(cells, oneLine(inner.String()))
	}
	if text := strings.Join(cells, " | "); strings.Trim(text, " |") != "" {
		w.write(text)
	}
}

// plain returns a text without tags and with its entities resolved.
func plain(text string) string {
	if !strings.ContainsAny(text, "<&") {
		return text
	}
	tokens := html.NewTokenizer(strings.NewReader(text))
	var out strings.Builder
	for {
		switch tokens.Next() {
		case html.ErrorToken:
			return out.String()
		case html.TextToken:
			out.Write(tokens.Text())
		}
	}
}
