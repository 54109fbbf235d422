package webtools_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/text/encoding/japanese"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/fetchguard"
	"github.com/lamina-mesh/lamina/pkg/webtools"
)

const prose = "The prince of the house walked slowly through the long hall, and nobody in the room dared to speak " +
	"before he had sat down at the table by the window, where the tea had long been cold. "

func TestReadable_FindsTheContent(t *testing.T) {
	noise := `<nav><ul><li><a href=/a>Home</a></li></ul></nav><script>var secret=1</script><style>p{}</style>
		<div hidden>HIDDEN</div><div style="display: none">HIDDEN</div><p aria-hidden=true>HIDDEN</p><!-- HIDDEN -->
		<noscript>HIDDEN</noscript><aside>HIDDEN</aside><form><button>HIDDEN</button></form>`
	links := strings.Repeat(`<a href=/x>Another story that you may like to read</a> `, 40)
	for name, c := range map[string]struct{ page, want string }{
		"article": {"<title> A\n title </title>" + noise + "<article><h1>Head</h1><p>" + prose + prose + "</p></article>" +
			"<footer>HIDDEN</footer><div class=more>" + links + "</div>",
			"# Head\n\n" + strings.TrimSpace(prose+prose)},
		"main role": {"<title>A title</title>" + noise + "<div role=main><p>" + prose + prose + "</p></div><div>" + links +
			"</div>", strings.TrimSpace(prose + prose)},
		"votes": {"<title>A title</title>" + noise + "<div><div>" + links + "</div><div id=c><p>" + prose + "</p><p>" +
			prose + "</p><p>" + prose + "</p></div></div>",
			strings.TrimSpace(prose) + "\n\n" + strings.TrimSpace(prose) + "\n\n" + strings.TrimSpace(prose)},
		"short": {"<title>A title</title><p>Only this.</p>", "Only this."},
		"blocks": {"<title>A title</title><h2>H</h2><ul><li>a<ul><li>b</li></ul><li><p>c</p></ul><ol><li>x<li>y</ol>" +
			"<pre>\n  code\n   more\n</pre><table><tr><th>k<th>v</tr><tr><td>1<td><p>2</p></tr></table>p<br>q" +
			"<img src=x alt='a cat'>", "## H\n\n- a\n  - b\n- c\n\n1. x\n2. y\n\n```\n  code\n   more\n```\n\nk | v\n1 | 2\n\np\nq [image: a cat]"},
		"layout table": {"<title>A title</title><table><tr><td><table><tr><td><p>in</p></td></tr></table></td></tr></table>",
			"in"},
		"formatting": {"<title>A title</title><p>a<b>b</b><i class=x>c</i> <svg/><code>x &lt; y</code>" +
			"<svg><title>HIDDEN</title></svg>!",
			"abc x < y!"},
		"heading as title": {"<h1>A title</h1><p>x", "# A title\n\nx"},
		"nothing":          {"<title>A title</title>", ""},
	} {
		title, text, err := webtools.Readable(c.page)
		if err != nil || title != "A title" || text != c.want {
			t.Errorf("%s: got %q\n%s\nwant\n%s\n(%v)", name, title, text, c.want, err)
		}
		if strings.Contains(text, "HIDDEN") || strings.Contains(text, "secret") {
			t.Errorf("%s: the text has what nobody reads", name)
		}
	}
}

// TestReadable_HostilePagesTakeLittleMemory has pages that the parser alone blows up: it opens formatting elements
// again in every paragraph, with their attributes.
func TestReadable_HostilePagesTakeLittleMemory(t *testing.T) {
	open := "<p>"
	for i := range 400 {
		open += "<b " + strings.Repeat("x", i%20+1) + "=" + strconv.Itoa(i) + ">"
	}
	attributes := ""
	for i := range 10000 {
		attributes += " a" + strconv.Itoa(i)
	}
	paragraphs := strings.Repeat("<p>word", 2000)
	for name, page := range map[string]string{
		"formatting": open + paragraphs, "attributes of a link": "<p><a" + attributes + ">" + paragraphs,
		"a tag within a tag": strings.ReplaceAll(open, "<b ", "<<i>b ") + paragraphs,
		"svg":                "<svg><title>" + open + paragraphs + "</title></svg><p>word",
		"select":             "<select><style><input>" + open + paragraphs + "</style></select><p>word",
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, text, err := webtools.Readable(page)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 100<<20 {
			t.Errorf("%s: a page of %d bytes needs %d MiB", name, len(page), used>>20)
		}
		if err != nil || !strings.Contains(text, "word") {
			t.Errorf("%s: got %.100q, %v", name, text, err)
		}
	}
}

// TestReadable_HostilePagesTakeNoTime would not end if the work doubled with each level.
func TestReadable_HostilePagesTakeNoTime(t *testing.T) {
	for _, open := range []string{
		"<div>", "<table><tr><td>", "<ul><li>", "<b>", "<table><tr><td>a<td>", "<article><p>",
	} {
		for _, depth := range []int{100, 100000} {
			_, text, err := webtools.Readable(strings.Repeat(open, depth) + "x")
			if depth == 100 && (err != nil || !strings.Contains(text, "x")) {
				t.Errorf("%d times %s: got %q, %v", depth, open, text, err)
			}
		}
	}
}

func reader(t *testing.T, address string) *webtools.Reader {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return webtools.NewReader(fetchguard.Config{
		Bytes: 3000, Ports: []uint16{uint16(port)}, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	})
}

func TestReader_ReadsPagesInTheirEncodings(t *testing.T) {
	sjis, err := japanese.ShiftJIS.NewEncoder().String("<meta charset=shift_jis><title>日本</title><p>猫")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string][2]string{ // type and body
		"/utf8":    {"text/html; charset=utf-8", "<title>é</title><p>ü"},
		"/bare":    {"text/html", "<title>é</title><p>ü"},
		"/latin":   {"text/html; charset=iso-8859-1", "<title>\xe9</title><p>\xfc"},
		"/wrong":   {"text/html", "<meta charset=iso-8859-1><title>é</title><p>ü"},
		"/meta":    {"text/html", sjis},
		"/bom":     {"text/html", "\xef\xbb\xbf<title>é</title><p>ü"},
		"/plain":   {"text/plain", "é\n<p>"},
		"/json":    {"application/json", `{"a":"<b>"}`},
		"/invalid": {"text/plain; charset=utf-8", "a\xffb"},
		"/long":    {"text/plain", strings.Repeat("é", 2000)},
		"/cut":     {"text/plain", "a" + strings.Repeat("é", 2000)},
		"/unknown": {"text/html", "<title>é\ufffd</title><p>ü \ufffd there is more"},
		"/header":  {"text/html; charset=iso-8859-1", "<title>é</title><p>ü"},
		"/mark":    {"text/html; charset=shift_jis", "\xef\xbb\xbf<title>é</title><p>ü"},
		"/sjis":    {"text/html; charset=shift_jis", "<title>é\ufffd</title><p>ü ß 日本"},
		"/gbk":     {"text/html; charset=gbk", "<title>日本日本日本</title><p>猫猫猫猫"},
		"/few":     {"text/html; charset=gbk", "<title>a</title><p>\xc1\xaa\xcd\xa8"}, // it is UTF-8 by accident
		"/late":    {"text/html", "<title>a</title><p>" + strings.Repeat("a", 1500) + "é \ufffd"},
		"/utf16":   {"text/html", "\xff\xfe<\x00p\x00>\x00\xe9\x00"},
		"/end":     {"text/plain; charset=iso-8859-1", "caf\xe9"},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", pages[r.URL.Path][0])
		_, _ = w.Write([]byte(pages[r.URL.Path][1]))
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	for path, want := range map[string][2]string{
		"/utf8": {"é", "ü"}, "/bare": {"é", "ü"}, "/latin": {"é", "ü"}, "/wrong": {"é", "ü"}, "/meta": {"日本", "猫"},
		"/bom": {"é", "ü"}, "/plain": {host + "/plain", "é\n<p>"}, "/json": {host + "/json", `{"a":"<b>"}`},
		"/invalid": {host + "/invalid", "a\ufffdb"}, "/long": {host + "/long", strings.Repeat("é", 1500)},
		"/cut": {host + "/cut", "a" + strings.Repeat("é", 1499)}, "/unknown": {"é\ufffd", "ü \ufffd there is more"},
		"/header": {"é", "ü"}, "/mark": {"é", "ü"}, "/sjis": {"é\ufffd", "ü ß 日本"}, "/gbk": {"日本日本日本", "猫猫猫猫"},
		"/few": {"a", "联通"}, "/late": {"a", strings.Repeat("a", 1500) + "é \ufffd"}, "/utf16": {host + "/utf16", "é"},
		"/end": {host + "/end", "café"},
	} {
		p, err := reader(t, s.URL).Read(t.Context(), s.URL+path)
		if err != nil || p.Title != want[0] || p.Text != want[1] || p.URL != s.URL+path ||
			p.Partial != (path == "/long" || path == "/cut") {
			t.Errorf("%s: got %+v, %v, want %q", path, p, err, want)
		}
	}
	pages["/image"] = [2]string{"image/png", "x"}
	if _, err := reader(t, s.URL).Read(t.Context(), s.URL+"/image"); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("an image: got %v", err)
	}
	if _, err := webtools.NewReader(fetchguard.Config{}).Read(t.Context(), s.URL); fault.CodeOf(err) !=
		fault.PermissionDenied {
		t.Errorf("a loopback address: got %v", err)
	}
}

func FuzzReadable(f *testing.F) {
	f.Add("<title>a</title><article><p>b</p><ul><li>c</ul><table><tr><td>d<td>e</table></article>")
	f.Add("<frameset><frame></frameset>")
	f.Add("<svg><title>x</title></svg><h0><h9>")
	f.Fuzz(func(t *testing.T, page string) {
		title, text, err := webtools.Readable(page)
		if err == nil && (strings.TrimSpace(text) != text || strings.Contains(title, "\n")) {
			t.Errorf("%q: got %q, %q", page, title, text)
		}
	})
}
