package tags

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/jsonschema"
)

// border is the begin or end of a tag: a text, or a control token by its spelling.
type border struct {
	text    string
	control bool
}

func (b border) expr() *ast.Expr {
	if b.control {
		return ast.Control(b.text)
	}
	return ast.Text(b.text)
}

// border parses a string or a token.
func (b *structure) border(n *part, field string, raw json.RawMessage) (border, error) {
	var text string
	if json.Unmarshal(raw, &text) == nil && string(raw) != "null" {
		return border{text: text}, nil
	}
	sub, err := b.node(n.place(field), raw)
	if err != nil {
		return border{}, n.fail(field, "want a string or a token")
	}
	if sub.kind != "token" {
		return border{}, sub.fail("type", "%q is neither a string nor a token", sub.kind)
	}
	out := border{control: true}
	if err := sub.must("token", &out.text, "a string"); err != nil {
		return border{}, err
	}
	if out.text == "" {
		return border{}, sub.fail("token", "want the spelling of a control token")
	}
	return out, sub.done()
}

// ends parses a border or a list of them. Without any, the end is the empty text.
func (b *structure) ends(n *part) ([]border, error) {
	if !n.has("end") {
		delete(n.fields, "end")
		return []border{{}}, nil
	}
	var raw json.RawMessage
	if err := n.read("end", &raw, "a string"); err != nil {
		return nil, err
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		end, err := b.border(n, "end", raw)
		return []border{end}, err
	}
	if len(list) == 0 {
		return nil, n.fail("end", "want at least one")
	}
	out := make([]border, len(list))
	for i, one := range list {
		var err error
		if out[i], err = b.border(n, fmt.Sprintf("end[%d]", i), one); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// tag parses begin, content and end.
func (b *structure) tag(n *part, depth int) (t builtTag, err error) {
	var raw json.RawMessage
	if err := n.must("begin", &raw, "a string or a token"); err != nil {
		return t, err
	}
	begin, err := b.border(n, "begin", raw)
	if err != nil {
		return t, err
	}
	ends, err := b.ends(n)
	if err != nil {
		return t, err
	}
	var not []string
	var last []*ast.Expr
	for _, end := range ends {
		if last = append(last, end.expr()); end.text != "" {
			not = append(not, end.text)
		}
	}
	var body *ast.Expr
	if n.has("schema") && !n.has("content") {
		body, err = b.inner(n, "schema", "",
			func(raw json.RawMessage) (*ast.Grammar, error) { return jsonschema.Parse(raw, jsonschema.Options{}) })
	} else {
		body, err = b.content(n, depth, not)
	}
	if err != nil {
		return t, err
	}
	return builtTag{begin: begin.text, control: begin.control, rest: ast.Seq(body, ast.Alt(last...))}, nil
}

// tags parses triggered_tags and tags_with_separator.
func (b *structure) tags(n *part, depth int) (*ast.Expr, error) {
	if n.has("structures") && !n.has("tags") { // the older name
		n.fields["tags"] = n.fields["structures"]
		delete(n.fields, "structures")
	}
	parts, err := b.list(n, "tags", "tag")
	if err != nil {
		return nil, err
	}
	o := Options{Only: n.kind == "tags_with_separator"}
	if err := errors.Join(n.read("at_least_one", &o.Required, "true or false"),
		n.read("stop_after_first", &o.Single, "true or false")); err != nil {
		return nil, err
	}
	if o.Only {
		err = n.read("separator", &o.Separator, "a string")
	} else {
		err = errors.Join(n.read("triggers", &o.Triggers, "a list of strings"),
			n.read("not_first", &o.NotFirst, "a string"))
	}
	if err != nil {
		return nil, err
	}
	for i, trigger := range o.Triggers {
		if trigger == "" {
			return nil, n.fail(fmt.Sprintf("triggers[%d]", i), "want text")
		}
	}
	tags := make([]builtTag, len(parts))
	for i, sub := range parts {
		if sub.kind != "tag" {
			return nil, sub.fail("type", "%q is not a tag", sub.kind)
		}
		if tags[i], err = b.tag(sub, depth+1); err != nil {
			return nil, err
		}
		if err := sub.done(); err != nil {
			return nil, err
		}
		if tags[i].begin == "" && !o.Only {
			return nil, sub.fail("begin", "is empty, so nothing would trigger it")
		}
	}
	return buildTags(tags, o)
}
