package jsonschema

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
)

type valueKind uint8

const (
	isNull valueKind = iota
	isBool
	isNumber
	isString
	isArray
	isObject
)

var kindNames = [...]string{"null", "boolean", "number", "string", "array", "object"}

// value is a JSON value that keeps the order of members and the text of numbers.
type value struct {
	kind   valueKind
	flag   bool
	text   string // of a string, or as a number is written
	list   []*value
	keys   []string
	fields map[string]*value
}

const maxValues = 200_000 // JSON values of a schema

// parseValue reads one JSON text.
func parseValue(source []byte) (*value, error) {
	if len(source) > ast.MaxSource {
		return nil, &ast.LimitError{What: "source bytes", Limit: ast.MaxSource}
	}
	if !utf8.Valid(source) {
		return nil, &ast.SyntaxError{Kind: "schema", Msg: "read JSON: it is not valid UTF-8"}
	}
	d := json.NewDecoder(strings.NewReader(string(source)))
	d.UseNumber()
	p := &valueParser{d: d}
	v, err := p.value(0)
	if err == nil {
		if _, extra := d.Token(); !errors.Is(extra, io.EOF) {
			err = p.fail(errors.New("there is text after the value"))
		}
	}
	return v, err
}

type valueParser struct {
	d     *json.Decoder
	count int
}

func (p *valueParser) fail(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &ast.SyntaxError{Kind: "schema", Msg: fmt.Sprintf("read JSON: %v before byte %d", err, p.d.InputOffset()+1)}
}

func (p *valueParser) value(depth int) (*value, error) {
	t, err := p.d.Token()
	if err != nil {
		return nil, p.fail(err)
	}
	if p.count++; p.count > maxValues {
		return nil, &ast.LimitError{What: "values of a schema", Limit: maxValues}
	}
	if depth > ast.MaxNesting {
		return nil, &ast.LimitError{What: "nested values", Limit: ast.MaxNesting}
	}
	switch t := t.(type) {
	case bool:
		return &value{kind: isBool, flag: t}, nil
	case json.Number:
		return &value{kind: isNumber, text: t.String()}, nil
	case string:
		return &value{kind: isString, text: t}, nil
	case json.Delim:
		if t == '[' {
			return p.array(depth)
		}
		return p.object(depth)
	}
	return &value{}, nil
}

func (p *valueParser) array(depth int) (*value, error) {
	v := &value{kind: isArray}
	for p.d.More() {
		item, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		v.list = append(v.list, item)
	}
	return v, p.close()
}

func (p *valueParser) object(depth int) (*value, error) {
	v := &value{kind: isObject, fields: map[string]*value{}}
	for p.d.More() {
		t, err := p.d.Token()
		if err != nil {
			return nil, p.fail(err)
		}
		key, ok := t.(string)
		if !ok {
			return nil, p.fail(errors.New("want a member name"))
		}
		field, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if v.fields[key] == nil {
			v.keys = append(v.keys, key)
		}
		v.fields[key] = field
	}
	return v, p.close()
}

func (p *valueParser) close() error {
	if _, err := p.d.Token(); err != nil {
		return p.fail(err)
	}
	return nil
}

// get returns the member of that name, or nil.
func (v *value) get(key string) *value {
	if v.kind != isObject {
		return nil
	}
	return v.fields[key]
}

// maxExponent bounds the numbers of a schema, so that they can be held exactly.
const maxExponent = 400

// rat returns v as an exact number, or false if v is not a number or is out of bounds.
func (v *value) rat() (*big.Rat, bool) {
	if v.kind != isNumber || len(v.text) > maxExponent {
		return nil, false
	}
	if i := strings.IndexAny(v.text, "eE"); i >= 0 {
		if e, err := strconv.Atoi(strings.TrimPrefix(v.text[i+1:], "+")); err != nil ||
			e > maxExponent || e < -maxExponent {
			return nil, false
		}
	}
	return new(big.Rat).SetString(v.text)
}

// canonical returns a text that is the same for two values if and only if JSON Schema counts
// them as equal.
func (v *value) canonical() string {
	var b strings.Builder
	v.write(&b)
	return b.String()
}

func (v *value) write(b *strings.Builder) {
	switch v.kind {
	case isNull:
		b.WriteString("null")
	case isBool:
		b.WriteString(strconv.FormatBool(v.flag))
	case isNumber:
		if r, ok := v.rat(); ok {
			b.WriteString(r.RatString())
		} else {
			b.WriteString(v.text)
		}
	case isString:
		b.WriteString(strconv.Quote(v.text))
	case isArray:
		b.WriteByte('[')
		for i, item := range v.list {
			if i > 0 {
				b.WriteByte(',')
			}
			item.write(b)
		}
		b.WriteByte(']')
	case isObject:
		b.WriteByte('{')
		for i, key := range slices.Sorted(slices.Values(v.keys)) {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(strconv.Quote(key))
			b.WriteByte(':')
			v.fields[key].write(b)
		}
		b.WriteByte('}')
	}
}
