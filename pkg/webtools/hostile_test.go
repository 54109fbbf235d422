package webtools_test

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/lamina-mesh/lamina/pkg/fetchguard"
	"github.com/lamina-mesh/lamina/pkg/webtools"
)

// steps returns the work of the parser for a document, counted apart from the code under test: the number of tags
// times the depth of the deepest element. The parser fails at a depth of 512.
func steps(t *testing.T, document string) (n int) {
	t.Helper()
	tokens := html.NewTokenizer(strings.NewReader(document))
	for kind := tokens.Next(); kind != html.ErrorToken; kind = tokens.Next() {
		if kind == html.StartTagToken || kind == html.EndTagToken || kind == html.SelfClosingTagToken {
			n++
		}
	}
	root, err := html.Parse(strings.NewReader(document))
	if err != nil {
		return 512
	}
	deepest := 1
	var walk func(*html.Node, int)
	walk = func(n *html.Node, depth int) {
		deepest = max(deepest, depth)
		for c := range n.ChildNodes() {
			walk(c, depth+1)
		}
	}
	walk(root, 0)
	return n * deepest
}

// TestReadable_HostilePagesTakeLinearWork reads pages as long as the longest that is fetched. The time is generous: it
// is for work that grows with the square of the size, which would take hours.
func TestReadable_HostilePagesTakeLinearWork(t *testing.T) {
	size := fetchguard.DefaultBytes
	if testing.Short() {
		size /= 4
	}
	fill := func(begin, unit string) string { return begin + strings.Repeat(unit, (size-len(begin))/len(unit)) }
	deep := strings.Repeat("<div>", 480)
	for name, c := range map[string]struct {
		page, want string
		tables     int // how many times more elements the parser opens than there are tags
	}{
		"items below many elements":        {fill(deep, "<li>a"), "a\n- a", 1},
		"definitions below many elements":  {fill(deep, "<dd>a"), "a\na", 1},
		"items in nested lists":            {fill(strings.Repeat("<ol><li>", 200), "<li>a"), "a", 1},
		"end tags of nothing":              {fill(deep+"word", "</p>"), "word", 1},
		"deep nesting":                     {fill("", "<div>"), "", 1},
		"an unclosed tag":                  {fill("a", "<x"), "a", 1},
		"unclosed tags":                    {fill("a", "<x>"), "", 1},
		"tiny texts beside a table":        {fill("<table>", "a<tr>"), "aaaa", 2},
		"tiny texts beside comments":       {fill("<table>", "a<!>"), "aaaa", 2},
		"tiny texts":                       {fill("", "a<b>"), "aaaa", 1},
		"tiny texts in a link":             {fill("<a>"+deep, "a<!>"), "aaaa", 1},
		"one huge attribute":               {fill("word<p style='", "x"), "word", 1},
		"one huge text instead of a cat":   {fill("word<img alt='", "x ") + "'>", "word [image: x x", 1},
		"many attributes":                  {fill("word<p ", "a "), "word", 1},
		"a text in nested cells":           {fill(strings.Repeat("<table><tr><td>b<td>", 110), "a "), "a a a", 2},
		"empty headings within each other": {fill(strings.Repeat("<h1><div>", 200)+"word", " <br>"), "word", 1},
		"open brackets":                    {fill("", "<"), "<<<<", 1},
	} {
		begin := time.Now()
		_, text, err := webtools.Readable(c.page)
		if took := time.Since(begin); took > 2*time.Minute {
			t.Errorf("%s: it took %v", name, took)
		}
		if err == nil && !strings.Contains(text, c.want) || err != nil && !strings.Contains(err.Error(), "512") {
			t.Errorf("%s: got %.100q, %v", name, text, err)
		}
		n, most := steps(t, webtools.Simplify(c.page)), c.tables*webtools.MaxSteps*11/10
		if n > most {
			t.Errorf("%s: the parser takes %d steps, more than %d", name, n, most)
		}
	}
}

// TestReadable_KeepsTheTextAfterTheBudget reads pages whose tags are not all kept.
func TestReadable_KeepsTheTextAfterTheBudget(t *testing.T) {
	deep := strings.Repeat("<div>", 480) + strings.Repeat("<li>a", webtools.MaxSteps/480)
	_, text, err := webtools.Readable(deep + "<p>one<p>two &lt;b&gt; <script>HIDDEN</script>" +
		"<style>HIDDEN</style>&<!--HIDDEN--><i>x<svg>HIDDEN</svg>y</i>" +
		"<textarea>HIDDEN<p></textarea> <img alt=HIDDEN> end")
	if want := "one two <b> &xy end"; err != nil || !strings.HasSuffix(text, want) || strings.Contains(text, "HIDDEN") {
		t.Errorf("got %q, %v, want %q", text[max(0, len(text)-100):], err, want)
	}
	// A large page without end tags keeps its rows.
	_, text, err = webtools.Readable("<table>" + strings.Repeat("<tr><td><p>1<td>2", 50_000))
	if rows := strings.Count(text, "1 | 2\n"); err != nil || rows != 50_000-1 {
		t.Errorf("got %d rows, %v", rows, err)
	}
	_, text, err = webtools.Readable(strings.Repeat("<div><span>1<p>2</div>", 50_000))
	if blocks := strings.Count(text, "1\n\n2\n\n"); err != nil || blocks != 50_000-1 {
		t.Errorf("got %d blocks, %v", blocks, err)
	}
}
