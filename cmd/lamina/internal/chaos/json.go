package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// maxDepth is the maximum nesting of a manifest. Requests of the load are not counted.
const maxDepth = 64

// node is a JSON value with the line on which it ends.
type node struct {
	line   int
	path   string
	raw    json.RawMessage
	fields []field // of an object
	items  []*node // of an array
	kind   byte    // '{', '[', '"', '0' for a number, 't' for a bool, 'n' for null
	text   string  // of a string or number
	yes    bool    // of a bool
}

type field struct {
	name  string
	value *node
}

// reader reads a JSON text with lines.
type reader struct {
	text []byte
	dec  *json.Decoder
}

func parseJSON(text []byte) (*node, error) {
	r := &reader{text: text, dec: json.NewDecoder(bytes.NewReader(text))}
	r.dec.UseNumber()
	n, err := r.value("", 0)
	if err != nil {
		return nil, err
	}
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "line %d: want one JSON object and nothing after it", r.line())
	}
	return n, nil
}

// line returns the line of what was read last.
func (r *reader) line() int { return 1 + bytes.Count(r.text[:r.dec.InputOffset()], []byte("\n")) }

func (r *reader) token() (json.Token, error) {
	t, err := r.dec.Token()
	if err == nil {
		return t, nil
	}
	line := r.line()
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		line = 1 + bytes.Count(r.text[:min(syntax.Offset, int64(len(r.text)))], []byte("\n"))
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, fault.Wrap(fault.Invalid, err, "line %d", line)
}

func (r *reader) value(path string, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fault.Field(path, "line %d: want at most %d levels", r.line(), maxDepth)
	}
	t, err := r.token()
	if err != nil {
		return nil, err
	}
	begin := r.dec.InputOffset() - 1
	n := &node{line: r.line(), path: path}
	switch v := t.(type) {
	case json.Delim:
		n.kind = byte(v)
		if err := r.inside(n, depth); err != nil {
			return nil, err
		}
		n.raw = r.text[begin:r.dec.InputOffset()]
	case string:
		n.kind, n.text = '"', v
	case json.Number:
		n.kind, n.text = '0', v.String()
	case bool:
		n.kind, n.yes = 't', v
	default:
		n.kind = 'n'
	}
	return n, nil
}

// inside reads the fields or items of n and its closing bracket.
func (r *reader) inside(n *node, depth int) error {
	for r.dec.More() {
		if n.kind == '[' {
			item, err := r.value(fmt.Sprintf("%s[%d]", n.path, len(n.items)), depth+1)
			if err != nil {
				return err
			}
			n.items = append(n.items, item)
			continue
		}
		t, err := r.token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // a decoder only returns strings as names
		path := name
		if n.path != "" {
			path = n.path + "." + name
		}
		if slices.ContainsFunc(n.fields, func(f field) bool { return f.name == name }) {
			return fault.Field(path, "line %d: the field is given twice", r.line())
		}
		value, err := r.value(path, depth+1)
		if err != nil {
			return err
		}
		n.fields = append(n.fields, field{name, value})
	}
	_, err := r.token()
	return err
}

// object takes fields out of an object. The first error stays.
type object struct {
	node *node
	err  *error
}

// bad notes an error of a value, unless there is one already.
func (o object) bad(n *node, format string, args ...any) {
	if *o.err == nil {
		*o.err = fault.Field(n.path, "line %d: %s", n.line, fmt.Sprintf(format, args...))
	}
}

// take returns the value of a field and removes it, or nil if the object lacks it.
func (o object) take(name string) *node {
	for i, f := range o.node.fields {
		if f.name == name {
			o.node.fields = slices.Delete(o.node.fields, i, i+1)
			return f.value
		}
	}
	return nil
}

// typed returns a field that must have a kind, or nil.
func (o object) typed(name string, kind byte, want string) *node {
	n := o.take(name)
	if n == nil {
		return nil
	}
	if n.kind != kind {
		o.bad(n, "want %s", want)
		return nil
	}
	return n
}

func (o object) text(name, or string) string {
	if n := o.typed(name, '"', "a string"); n != nil {
		return n.text
	}
	return or
}

// choice returns a field that must be one of the values. Without the field it returns or.
func (o object) choice(name, or string, values ...string) string {
	n := o.typed(name, '"', "a string")
	if n == nil {
		return or
	}
	if !slices.Contains(values, n.text) {
		o.bad(n, "want one of %q, got %q", values, n.text)
	}
	return n.text
}

// integer returns a field that must be in [lo, hi].
func (o object) integer(name string, or, lo, hi int) int {
	n := o.typed(name, '0', "an integer")
	if n == nil {
		return or
	}
	v, err := strconv.Atoi(n.text)
	if err != nil || v < lo || v > hi {
		o.bad(n, "want an integer of %d to %d, got %s", lo, hi, n.text)
	}
	return v
}

// number returns a field that must be in [lo, hi].
func (o object) number(name string, or, lo, hi float64) float64 {
	n := o.typed(name, '0', "a number")
	if n == nil {
		return or
	}
	v, err := strconv.ParseFloat(n.text, 64)
	if err != nil || !(v >= lo && v <= hi) {
		o.bad(n, "want a number of %g to %g, got %s", lo, hi, n.text)
	}
	return v
}

// duration returns a field such as "1.5s" that must be in [lo, hi].
func (o object) duration(name string, or, lo, hi time.Duration) time.Duration {
	n := o.typed(name, '"', `a duration such as "1.5s"`)
	if n == nil {
		return or
	}
	d, err := time.ParseDuration(n.text)
	if err != nil || d < lo || d > hi {
		o.bad(n, "want a duration of %v to %v, got %q", lo, hi, n.text)
	}
	return d
}

// within returns a field that is an object, or an empty object.
func (o object) within(name string) object {
	n := o.typed(name, '{', "an object")
	if n == nil {
		n = &node{kind: '{'}
	}
	return object{n, o.err}
}

// list returns the items of a field that is an array.
func (o object) list(name string) []*node {
	if n := o.typed(name, '[', "an array"); n != nil {
		return n.items
	}
	return nil
}

// texts returns a field that is an array of strings.
func (o object) texts(name string) []string {
	var out []string
	for _, item := range o.list(name) {
		if item.kind != '"' {
			o.bad(item, "want a string")
			return nil
		}
		out = append(out, item.text)
	}
	return out
}

// end notes an error for the first field that was not taken.
func (o object) end() {
	if len(o.node.fields) > 0 {
		o.bad(o.node.fields[0].value, "unknown field")
	}
}
