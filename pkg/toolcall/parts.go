package toolcall

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

// part is one part of a structure.
type part map[string]any

func constant(s string) part { return part{"type": "const_string", "value": s} }

func pattern(re string) part { return part{"type": "regex", "pattern": re} }

// schema builds an instance of a JSON schema. White space is bounded, because a model that
// finds every continuation improbable would otherwise write white space without end.
func schema(raw json.RawMessage) part {
	return part{"type": "json_schema", "json_schema": raw, "max_whitespace": 20}
}

func anyBut(markers ...string) part { return part{"type": "any_text", "excludes": markers} }

func several(kind string, parts []part) part {
	kept := parts[:0:0]
	for _, p := range parts {
		if p != nil {
			kept = append(kept, p)
		}
	}
	switch len(kept) {
	case 0:
		return nil
	case 1:
		return kept[0]
	}
	return part{"type": kind, "elements": kept}
}

// row concatenates parts; nil parts are skipped.
func row(parts ...part) part { return several("sequence", parts) }

func either(parts ...part) part { return several("or", parts) }

func maybe(p part) part { return part{"type": "optional", "content": p} }

func many(p part) part { return part{"type": "star", "content": p} }

// quoted escapes text for use in a regular expression.
func quoted(s string) string { return regexp.QuoteMeta(s) }

// mark builds a text in which the format's markers are control tokens, if the vocabulary has
// them. A token that ends the text is optional.
func (w *writer) mark(s string) part {
	if s == "" {
		return nil
	}
	var out []part
	from := 0
	for at := 0; at < len(s); {
		n := 0
		if w.o.Control != nil {
			n = w.controlAt(s[at:])
		}
		if n == 0 {
			at++
			continue
		}
		if from < at {
			out = append(out, constant(s[from:at]))
		}
		token := part{"type": "token", "token": s[at : at+n]}
		if w.o.Ends != nil && w.o.Ends(s[at:at+n]) {
			token = maybe(token)
		}
		out = append(out, token)
		at += n
		from = at
	}
	if from < len(s) {
		out = append(out, constant(s[from:]))
	}
	return row(out...)
}

// controlAt returns the length of the longest control token at the beginning of s.
func (w *writer) controlAt(s string) int {
	if strings.IndexByte("<[>`\xef\xe2", s[0]) < 0 {
		return 0
	}
	for n := min(len(s), 64); n > 1; n-- {
		if w.o.Control(s[:n]) {
			return n
		}
	}
	return 0
}

// trigger returns the text after which a marker's content begins, for the begin of a tag.
func (w *writer) trigger(marker string) (begin any, rest string) {
	if w.o.Control != nil && marker != "" {
		if n := w.controlAt(marker); n > 0 {
			return part{"type": "token", "token": marker[:n]}, marker[n:]
		}
	}
	return marker, ""
}

// ordered writes an object with its members in the order of the source text, and new
// members at the end.
func ordered(from json.RawMessage, members map[string]json.RawMessage) (json.RawMessage, error) {
	names, err := keys(from)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	written := map[string]bool{}
	write := func(name string) {
		if raw, ok := members[name]; ok && !written[name] {
			if len(written) > 0 {
				b.WriteByte(',')
			}
			b.WriteString(marshal(name) + ":")
			b.Write(raw)
			written[name] = true
		}
	}
	b.WriteByte('{')
	for _, name := range names {
		write(name)
	}
	for _, name := range []string{"type", "additionalProperties", "$defs", "definitions"} {
		write(name)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// keys returns the names of an object's members in order, without duplicates.
func keys(object json.RawMessage) ([]string, error) {
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	var out []string
	seen := map[string]bool{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		if s, ok := name.(string); ok && !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out, nil
}
