package webtools

import (
	"bytes"
	"cmp"
	"context"
	"net/url"
	"strings"

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
	out.Title = cmp.Or(out.Title, nameOf(doc.URL))
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

// decode returns a document as UTF-8. Its encoding is that of its header, of its marks or of its meta elements.
func decode(body []byte, kind, label string) (string, error) {
	if label != "" {
		kind += "; charset=" + label
	}
	encoding, name, sure := charset.DetermineEncoding(body, kind)
	if name == "utf-8" || !sure && name == "windows-1252" && validUTF8(body) { // the fallback of HTML
		return strings.ToValidUTF8(string(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))), "\ufffd"), nil
	}
	out, err := encoding.NewDecoder().Bytes(body)
	return strings.ToValidUTF8(string(out), "\ufffd"), err
}

// validUTF8 reports whether a text is UTF-8, but for a character at its end that was cut.
func validUTF8(body []byte) bool {
	at := bytes.IndexRune(body, '\ufffd')
	return at < 0 || at > len(body)-4
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
