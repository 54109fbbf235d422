package jsonschema

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
)

// draft is the edition of JSON Schema that a schema names by $schema.
type draft uint8

const (
	draft2020 draft = iota // also of a schema that names none
	draft2019
	draft7 // or before: keywords beside $ref do not count
)

// place is a subschema as it is reached from a dynamic scope.
type place struct {
	id    int
	v     *value
	path  string // JSON pointer from the root, prefixed by the URI in another document
	base  string // URI against which references in it are resolved
	draft draft
	scope int32 // index into document.scopes
}

// document is a schema and the other documents that its references name.
type document struct {
	root    *place
	places  []*place
	of      map[*value]*place // in the empty scope
	byURI   map[string]*place // resources by their URI
	anchors map[string]*place // by URI#name
	older   bool              // it has no $schema but "definitions", as in draft 7

	unused []string // keywords of vocabularies that the metaschema leaves out
	// others are the documents that may be loaded, by URI. They are parsed when a
	// reference names them.
	others map[string][]byte
	// unevaluated says that some subschema has unevaluatedProperties or unevaluatedItems.
	unevaluated bool

	// A $dynamicRef may name a $dynamicAnchor in any resource that evaluation has entered so
	// far. A scope lists the entered resources that have dynamic anchors, outermost first. A
	// subschema has one place for each scope in which it is reached.
	dynamics map[string]*place // $dynamicAnchor by URI#name
	dynamic  map[string]bool   // URIs of resources that have one
	scopes   [][]string
	scopeIDs map[string]int32
	scoped   map[scopedKey]*place
}

type scopedKey struct {
	v     *value
	scope int32
}

const maxPlaces = 40_000

// documentBase stands for the URI of a document that has none.
const documentBase = "schema:/"

func newDocument(root *value, others map[string][]byte) (*document, error) {
	d := &document{of: map[*value]*place{}, byURI: map[string]*place{}, anchors: map[string]*place{}, others: others,
		dynamics: map[string]*place{}, dynamic: map[string]bool{}, scopes: [][]string{nil},
		scopeIDs: map[string]int32{"": 0},
		scoped:   map[scopedKey]*place{}}
	d.older = root.get("$schema") == nil && root.get("definitions") != nil && root.get("$defs") == nil
	p, err := d.add(root, "", documentBase, draft2020)
	if err != nil {
		return nil, err
	}
	d.root, err = d.enter(p, 0)
	return d, err
}

// enter returns the place of p when it is reached from a dynamic scope.
func (d *document) enter(p *place, scope int32) (*place, error) {
	if d.dynamic[p.base] && !slices.Contains(d.scopes[scope], p.base) {
		list := append(slices.Clip(d.scopes[scope]), p.base)
		key := strings.Join(list, " ")
		id, ok := d.scopeIDs[key]
		if !ok {
			id = int32(len(d.scopes))
			d.scopes = append(d.scopes, list)
			d.scopeIDs[key] = id
		}
		scope = id
	}
	if p.scope == scope {
		return p, nil
	}
	key := scopedKey{p.v, scope}
	if scope == 0 {
		return d.of[p.v], nil
	}
	if known := d.scoped[key]; known != nil {
		return known, nil
	}
	if len(d.places) >= maxPlaces {
		return nil, &ast.LimitError{What: "subschemas", Limit: maxPlaces}
	}
	made := *p
	made.id, made.scope = len(d.places), scope
	d.places = append(d.places, &made)
	d.scoped[key] = &made
	return &made, nil
}

// load parses the document of that URI, if the caller has given it.
func (d *document) load(uri string) (*place, error) {
	source, ok := d.others[uri]
	if !ok {
		return nil, nil
	}
	v, err := parseValue(source)
	if err != nil {
		return nil, fmt.Errorf("read document %s: %w", uri, err)
	}
	p, err := d.add(v, uri+"#", uri, draft2020)
	if err == nil {
		d.byURI[uri] = p
	}
	return p, err
}

// Keywords whose value is a schema, a list of them, or an object of them.
var (
	schemaKeywords = []string{
		"additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
		"unevaluatedItems", "unevaluatedProperties", "contentSchema",
	}
	schemaLists   = []string{"allOf", "anyOf", "oneOf", "prefixItems", "items"}
	schemaObjects = []string{"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties",
		"properties"}
)

// add registers a schema and those in it.
func (d *document) add(v *value, path, base string, edition draft) (*place, error) {
	if p := d.of[v]; p != nil {
		return p, nil
	}
	if len(d.places) >= maxPlaces {
		return nil, &ast.LimitError{What: "subschemas", Limit: maxPlaces}
	}
	p := &place{id: len(d.places), v: v, path: path, base: base, draft: edition}
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
	for _, key := range d.unused {
		if v.get(key) != nil {
			return nil, &ast.UnsupportedError{Kind: "schema", Feature: key, Path: path,
				Why: "the metaschema does not include the vocabulary of this keyword"}
		}
	}
	d.unevaluated = d.unevaluated || v.get("unevaluatedProperties") != nil || v.get("unevaluatedItems") != nil
	child := func(v *value, path string) error {
		if v.kind != isObject && v.kind != isBool {
			return nil // the error comes when the keyword is read
		}
		_, err := d.add(v, path, p.base, p.draft)
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
			return &ast.SyntaxError{Kind: "schema", Msg: "read $schema at " + strconv.Quote(p.path) + ": want a string"}
		case strings.HasPrefix(name, "https://json-schema.org/draft/2019-"):
			p.draft = draft2019
		case name == "http://json-schema.org/schema", strings.HasPrefix(name, "https://json-schema.org/draft/20"):
			p.draft = draft2020
		case strings.HasPrefix(name, "http://json-schema.org/draft-0"),
			strings.HasPrefix(name, "https://json-schema.org/draft-0"):
			p.draft = draft7
		default:
			if err := d.dialect(p, s.text); err != nil {
				return err
			}
		}
	}
	if p.v.get("$ref") != nil && (p.draft == draft7 || d.older) {
		return nil
	}
	id := p.v.get("$id")
	if id == nil && p.draft == draft7 {
		id = p.v.get("id")
	}
	if id != nil && id.kind == isString {
		uri, fragment, _ := strings.Cut(id.text, "#")
		if uri != "" {
			full, err := resolveURI(p.base, uri)
			if err != nil {
				return &ast.SyntaxError{Kind: "schema",
					Msg: "read $id at " + strconv.Quote(p.path) + ": " + err.Error()}
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
			if key == "$dynamicAnchor" {
				d.dynamics[p.base+"#"+a.text] = p
				d.dynamic[p.base] = true
			}
		}
	}
	return nil
}

// vocabularies lists the keywords of draft 2020-12's vocabularies that change verdicts.
var vocabularies = map[string][]string{
	"applicator": append(slices.Concat(schemaKeywords, schemaLists), "dependentSchemas", "patternProperties",
		"properties"),
	"unevaluated": {"unevaluatedItems", "unevaluatedProperties"},
	"validation": {
		"const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxContains", "maximum",
		"maxItems",
		"maxLength", "maxProperties", "minContains", "minimum", "minItems", "minLength", "minProperties", "multipleOf",
		"pattern", "required", "type", "uniqueItems",
	},
}

// dialect accepts a metaschema that the caller has given if it is draft 2020-12 or
// a part of it. A keyword of a part that it leaves out is refused, not ignored.
func (d *document) dialect(p *place, uri string) error {
	refuse := func(why string) error {
		return &ast.UnsupportedError{Kind: "schema", Feature: "$schema " + uri, Path: p.path, Why: why}
	}
	source, ok := d.others[uri]
	if !ok {
		return refuse("unknown dialect")
	}
	meta, err := parseValue(source)
	if err != nil {
		return fmt.Errorf("read document %s: %w", uri, err)
	}
	list := meta.get("$vocabulary")
	if list == nil || list.kind != isObject {
		return refuse("its metaschema has no $vocabulary")
	}
	const known = "https://json-schema.org/draft/2020-12/vocab/"
	for _, name := range list.keys {
		required := list.fields[name]
		if !strings.HasPrefix(name, known) && (required.kind != isBool || required.flag) {
			return refuse("unknown vocabulary " + name)
		}
	}
	p.draft = draft2020
	for _, name := range []string{"applicator", "unevaluated", "validation"} {
		if list.get(known+name) == nil {
			d.unused = append(d.unused, vocabularies[name]...)
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

// resolve returns the schema that a reference in p names.
func (d *document) resolve(p *place, keyword, ref string) (*place, error) {
	unknown := func(why string) error {
		return &ast.UnsupportedError{Kind: "schema", Feature: keyword + " " + ref, Path: p.path + "/" + keyword,
			Why: why}
	}
	uri, fragment, _ := strings.Cut(ref, "#")
	full := p.base
	if uri != "" {
		var err error
		if full, err = resolveURI(p.base, uri); err != nil {
			return nil, unknown("malformed URI")
		}
	}
	resource := d.byURI[full]
	if resource == nil {
		var err error
		if resource, err = d.load(full); err != nil {
			return nil, err
		}
	}
	if resource == nil {
		return nil, unknown("the document is not part of this schema, and documents are never fetched")
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
		return nil, unknown("no such anchor")
	}
	pointer, err := url.PathUnescape(fragment)
	if err != nil {
		return nil, unknown("malformed JSON pointer")
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
				return nil, unknown("no such location")
			}
			at = at.list[i]
		default:
			at = nil
		}
		if at == nil {
			return nil, unknown("no such location")
		}
	}
	return d.add(at, path, full, resource.draft)
}

// resolveDynamic returns the schema that a $dynamicRef in p names. If the reference leads to a
// $dynamicAnchor, the outermost resource of the scope with an anchor of that name decides.
func (d *document) resolveDynamic(p *place, ref string) (*place, error) {
	to, err := d.resolve(p, "$dynamicRef", ref)
	if err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(ref, "#")
	if d.dynamics[to.base+"#"+name] != to {
		return to, nil
	}
	for _, uri := range d.scopes[p.scope] {
		if outer := d.dynamics[uri+"#"+name]; outer != nil {
			return outer, nil
		}
	}
	return to, nil
}
