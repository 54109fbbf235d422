package grammar

import (
	"net/url"
	"strconv"
	"strings"
)

// place is a schema in a document: where a pointer leads to.
type place struct {
	id   int
	v    *value
	path string // JSON pointer from the document's root
	base string // URI that references in it are relative to
	old  bool   // draft 7 or before: beside $ref nothing counts
}

// document is a schema with all that references in it may name.
type document struct {
	root    *place
	places  []*place
	of      map[*value]*place
	byURI   map[string]*place // resources
	anchors map[string]*place // URI#name
	dynamic bool              // there are $dynamicAnchor besides the root's
	older   bool              // it names no dialect, but keeps definitions as draft 7 does
}

const maxPlaces = 40_000

// documentBase stands for the URI of a document that has none.
const documentBase = "schema:/"

func newDocument(root *value) (*document, error) {
	d := &document{of: map[*value]*place{}, byURI: map[string]*place{}, anchors: map[string]*place{}}
	d.older = root.get("$schema") == nil && root.get("definitions") != nil && root.get("$defs") == nil
	p, err := d.add(root, "", documentBase, false)
	d.root = p
	return d, err
}

// Keywords whose value is a schema, a list of them, or an object of them.
var (
	schemaKeywords = []string{
		"additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
		"unevaluatedItems", "unevaluatedProperties", "contentSchema",
	}
	schemaLists   = []string{"allOf", "anyOf", "oneOf", "prefixItems", "items"}
	schemaObjects = []string{"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"}
)

// add registers a schema and those in it.
func (d *document) add(v *value, path, base string, old bool) (*place, error) {
	if p := d.of[v]; p != nil {
		return p, nil
	}
	if len(d.places) >= maxPlaces {
		return nil, &LimitError{What: "schemas in a schema", Limit: maxPlaces}
	}
	p := &place{id: len(d.places), v: v, path: path, base: base, old: old}
	d.places = append(d.places, p)
	d.of[v] = p
	if path == "" {
		d.byURI[base] = p
	}
	if v.kind != isObject {
		return p, nil
	}
	if err := d.identify(p); err != nil {
		return nil, err
	}
	child := func(v *value, path string) error {
		if v.kind != isObject && v.kind != isBool {
			return nil // whoever reads the keyword says what is wrong
		}
		_, err := d.add(v, path, p.base, p.old)
		return err
	}
	for _, key := range schemaKeywords {
		if s := v.get(key); s != nil {
			if err := child(s, path+"/"+key); err != nil {
				return nil, err
			}
		}
	}
	for _, key := range schemaLists {
		if s := v.get(key); s != nil && s.kind == isArray {
			for i, item := range s.list {
				if err := child(item, path+"/"+key+"/"+strconv.Itoa(i)); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, key := range schemaObjects {
		if s := v.get(key); s != nil && s.kind == isObject {
			for _, name := range s.keys {
				if err := child(s.fields[name], path+"/"+key+"/"+escapePointer(name)); err != nil {
					return nil, err
				}
			}
		}
	}
	return p, nil
}

func escapePointer(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

// identify reads $schema, $id, id and the anchors.
func (d *document) identify(p *place) error {
	if s := p.v.get("$schema"); s != nil {
		switch name := strings.TrimSuffix(s.text, "#"); {
		case s.kind != isString:
			return &SyntaxError{Kind: "schema", Msg: "read $schema at " + strconv.Quote(p.path) + ": want a string"}
		case name == "http://json-schema.org/schema", strings.HasPrefix(name, "https://json-schema.org/draft/20"):
			p.old = false
		case strings.HasPrefix(name, "http://json-schema.org/draft-0"), strings.HasPrefix(name, "https://json-schema.org/draft-0"):
			p.old = true
		default:
			return &UnsupportedError{Kind: "schema", Feature: "$schema " + s.text, Path: p.path, Why: "the dialect is not known here"}
		}
	}
	if p.v.get("$ref") != nil && (p.old || d.older) {
		return nil
	}
	id := p.v.get("$id")
	if id == nil && p.old {
		id = p.v.get("id")
	}
	if id != nil && id.kind == isString {
		uri, fragment, _ := strings.Cut(id.text, "#")
		if uri != "" {
			full, err := resolveURI(p.base, uri)
			if err != nil {
				return &SyntaxError{Kind: "schema", Msg: "read $id at " + strconv.Quote(p.path) + ": " + err.Error()}
			}
			p.base = full
			d.byURI[full] = p
		}
		if fragment != "" {
			d.anchors[p.base+"#"+fragment] = p
		}
	}
	for _, key := range []string{"$anchor", "$dynamicAnchor"} {
		if a := p.v.get(key); a != nil && a.kind == isString {
			d.anchors[p.base+"#"+a.text] = p
			d.dynamic = d.dynamic || key == "$dynamicAnchor" && p.path != ""
		}
	}
	return nil
}

func resolveURI(base, uri string) (string, error) {
	b, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	u, err := b.Parse(uri)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// resolve is the schema that a reference in p names.
func (d *document) resolve(p *place, keyword, ref string) (*place, error) {
	unknown := func(why string) error {
		return &UnsupportedError{Kind: "schema", Feature: keyword + " " + ref, Path: p.path + "/" + keyword, Why: why}
	}
	uri, fragment, _ := strings.Cut(ref, "#")
	full := p.base
	if uri != "" {
		var err error
		if full, err = resolveURI(p.base, uri); err != nil {
			return nil, unknown("it is no URI")
		}
	}
	resource := d.byURI[full]
	if resource == nil {
		return nil, unknown("it is not in this schema, and nothing is fetched")
	}
	if fragment == "" {
		return resource, nil
	}
	if !strings.HasPrefix(fragment, "/") {
		if name, err := url.PathUnescape(fragment); err == nil {
			fragment = name
		}
		if a := d.anchors[full+"#"+fragment]; a != nil {
			return a, nil
		}
		return nil, unknown("there is no such anchor")
	}
	pointer, err := url.PathUnescape(fragment)
	if err != nil {
		return nil, unknown("its pointer is not well formed")
	}
	at, path := resource.v, resource.path
	for _, part := range strings.Split(pointer[1:], "/") {
		part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
		path += "/" + escapePointer(part)
		switch at.kind {
		case isObject:
			at = at.fields[part]
		case isArray:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(at.list) {
				return nil, unknown("nothing is there")
			}
			at = at.list[i]
		default:
			at = nil
		}
		if at == nil {
			return nil, unknown("nothing is there")
		}
	}
	return d.add(at, path, full, resource.old)
}
