package webtools

import (
	"bytes"
	"cmp"
	"context"
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/html"
	"golang.org/x/net/html/charset"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/fetchguard"
)

// Page is the readable text of a document.
type Page struct {
	URL     string // after redirects
	Title   string
	Text    string
	Partial bool // the document was longer than the limit
}

// Reader reads pages. It may be used by several goroutines.
type Reader struct{ client *fetchguard.Client }

// The media types that a reader accepts.
const (
	typeHTML  = "text/html"
	typeXHTML = "application/xhtml+xml"
)

// NewReader returns a reader. It sets the content types of c.
func NewReader(c fetchguard.Config) *Reader {
	c.Types = []string{typeHTML, typeXHTML, "text/plain", "text/markdown", "text/csv", "application/json"}
	return &Reader{fetchguard.New(c)}
}

// Read fetches a page and returns its text. Its errors are those of fetchguard's Get, and DataLoss for a page that is
// not well enough formed.
func (r *Reader) Read(ctx context.Context, address string) (*Page, error) {
	doc, err := r.client.Get(ctx, address)
	if err != nil {
		return nil, err
	}
	out := &Page{URL: doc.URL, Partial: doc.Partial}
	body, err := decode(doc.Body, doc.Type, doc.Params["charset"])
	if err == nil && (doc.Type == typeHTML || doc.Type == typeXHTML) {
		out.Title, out.Text, err = Readable(body)
	} else {
		out.Text = body
	}
	if err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "read %s", doc.URL)
	}
	out.Title = shorten(cmp.Or(out.Title, nameOf(doc.URL)), maxTitle)
	return out, nil
}

// nameOf returns a title for a document without one.
func nameOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	return u.Host + u.Path
}

// decode returns a document as UTF-8. Its encoding is that of its header, of its marks or of its meta elements, unless
// it is UTF-8 all the same.
func decode(body []byte, kind, label string) (string, error) {
	if label != "" {
		kind += "; charset=" + label
	}
	encoding, name, _ := charset.DetermineEncoding(body, kind)
	many := manyUTF8
	if name == "windows-1252" { // also the fallback of HTML, and what ASCII and Latin 1 mean there
		many = 1
	}
	n := beyondASCII(body)
	if name == "utf-8" || n >= many {
		return clean(whole(body)), nil
	}
	out, err := encoding.NewDecoder().Bytes(body)
	if n > 0 && bytes.ContainsRune(out, utf8.RuneError) {
		return clean(whole(body)), nil
	}
	return clean(out), err
}

// manyUTF8 is the number of characters beyond ASCII from which on a document is UTF-8 if all its bytes are: a text in
// another encoding of several bytes may have a few of them by accident.
const manyUTF8 = 8

// beyondASCII returns the number of characters beyond ASCII of a document that is UTF-8, and 0 for another one.
func beyondASCII(body []byte) (n int) {
	if body = whole(body); !utf8.Valid(body) {
		return 0
	}
	for _, b := range body {
		if b >= 0xc0 { // the first byte of a character
			n++
		}
	}
	return n
}

// whole returns a document without a character of UTF-8 at its end of which bytes are missing.
func whole(body []byte) []byte {
	for i := len(body) - 1; i >= max(0, len(body)-utf8.UTFMax); i-- {
		if utf8.RuneStart(body[i]) {
			if utf8.FullRune(body[i:]) {
				break
			}
			return body[:i]
		}
	}
	return body
}

// clean returns a text without byte order mark, and with U+FFFD for bytes that are not UTF-8.
func clean(text []byte) string {
	return strings.ToValidUTF8(strings.TrimPrefix(string(text), "\ufeff"), "\ufffd")
}

// Readable returns the title of an HTML document and its text: that of the element with the content if there is one.
func Readable(document string) (title, text string, err error) {
	root, err := html.Parse(strings.NewReader(simplify(document)))
	if err != nil {
		return "", "", err
	}
	title = titleOf(root)
	prune(root)
	w := &writer{}
	w.block(contentOf(root))
	return title, w.String(), nil
}
