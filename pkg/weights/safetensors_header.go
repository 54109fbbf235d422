package weights

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// headerParser reads the JSON header of a safetensors file. A header is an object of objects of
// strings and short integer arrays. A parser for just that structure needs memory in proportion to
// the number of tensors. A general JSON parser would allocate whatever the file describes.
type headerParser struct {
	file     string
	b        []byte // the header, which starts at byte 8 of the file
	at       int
	budget   *budget
	err      error
	entries  []headerEntry
	seen     map[string]bool
	metadata map[string]string
}

// headerEntry is a tensor as the header describes it.
type headerEntry struct {
	name     string
	dtype    string
	shape    []int64
	from, to int64 // byte range of the data, counted from the end of the header
	at       int64 // offset of the entry in the file
}

func (p *headerParser) fail(field, format string, args ...any) {
	if p.err == nil {
		p.err = &FormatError{File: p.file, Offset: 8 + int64(p.at), Field: field, Msg: fmt.Sprintf(format, args...)}
	}
}

// peek skips white space and returns the next byte. It returns 0 at the end and
// after an error.
func (p *headerParser) peek() byte {
	for p.err == nil && p.at < len(p.b) {
		switch c := p.b[p.at]; c {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return c
		}
	}
	return 0
}

// accept consumes c if it comes next.
func (p *headerParser) accept(c byte) bool {
	if p.peek() != c || p.err != nil {
		return false
	}
	p.at++
	return true
}

func (p *headerParser) expect(field string, c byte) {
	if !p.accept(c) {
		p.fail(field, "want %q", c)
	}
}

// str reads a string.
func (p *headerParser) str(field string) string {
	p.expect(field, '"')
	if p.err != nil {
		return ""
	}
	from := p.at - 1
	for {
		next := bytes.IndexAny(p.b[p.at:], `"\`)
		if next < 0 {
			p.at = len(p.b)
			break
		}
		p.at += next
		if p.b[p.at] == '"' {
			break
		}
		p.at = min(p.at+2, len(p.b)) // a backslash and the character it escapes
	}
	p.expect(field, '"')
	if p.err != nil {
		return ""
	}
	raw := p.b[from:p.at]
	plain, cost := true, uint64(len(raw))
	for _, c := range raw[1 : len(raw)-1] {
		plain = plain && c != '\\' && c >= ' '
	}
	if !plain {
		cost += unescapeCost
	}
	if !p.budget.charge(1, cost) {
		p.fail(field, "a string of %d bytes takes too much memory", len(raw))
		return ""
	}
	if !utf8.Valid(raw) {
		p.fail(field, "%s is not UTF-8", clip(string(raw)))
		return ""
	}
	if plain {
		return string(raw[1 : len(raw)-1])
	}
	var out string
	if err := json.Unmarshal(raw, &out); err != nil {
		p.fail(field, "%.96q is not a string: %.96s", raw, err)
	}
	return out
}

// integers reads an array of non-negative integers with at most limit elements.
func (p *headerParser) integers(field string, limit int) []int64 {
	p.expect(field, '[')
	out := []int64{}
	if p.accept(']') {
		return out
	}
	for p.err == nil {
		if len(out) == limit {
			p.fail(field, "want at most %d numbers", limit)
		}
		out = append(out, p.integer(field))
		if p.accept(']') {
			return out
		}
		p.expect(field, ',')
	}
	return nil
}

func (p *headerParser) integer(field string) int64 {
	p.peek()
	from := p.at
	for p.at < len(p.b) && p.b[p.at] >= '0' && p.b[p.at] <= '9' {
		p.at++
	}
	text := string(p.b[from:min(p.at, from+32)])
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || len(text) > 1 && text[0] == '0' {
		p.at = from
		p.fail(field, "want a number from 0 to 2^63-1")
	}
	return v
}

// object reads an object. It calls member for each key, after the colon.
func (p *headerParser) object(field string, member func(key string, at int)) {
	p.expect(field, '{')
	if p.accept('}') {
		return
	}
	for p.err == nil {
		p.peek()
		at := p.at
		key := p.str(field)
		p.expect(field, ':')
		if p.err != nil {
			return
		}
		member(key, at)
		if p.accept('}') {
			return
		}
		p.expect(field, ',')
	}
}

// header reads the whole header. Entries keep its order.
func (p *headerParser) header() {
	p.seen, p.metadata = map[string]bool{}, map[string]string{}
	p.object("header", func(name string, at int) {
		if p.seen[name] {
			p.at = at
			p.fail(clip(name), "the name occurs twice")
			return
		}
		if !p.budget.charge(1, entryCost) {
			p.fail("header", "the entries would take too much memory")
			return
		}
		p.seen[name] = true
		if name == "__metadata__" {
			p.readMetadata(name)
			return
		}
		p.entry(name, at)
	})
	p.peek()
	if p.err == nil && p.at < len(p.b) {
		p.fail("header", "bytes follow the end of the object")
	}
}

func (p *headerParser) readMetadata(field string) {
	p.object(field, func(key string, _ int) {
		if !p.budget.charge(1, metadataCost) {
			p.fail(field, "the entries would take too much memory")
			return
		}
		if _, twice := p.metadata[key]; twice {
			p.fail(field+"."+clip(key), "the key occurs twice")
			return
		}
		p.metadata[key] = p.str(field + "." + clip(key))
	})
}

func (p *headerParser) entry(name string, at int) {
	e := headerEntry{name: name, at: 8 + int64(at)}
	shown := clip(name)
	const dtype, shape, offsets = 1, 2, 4
	found := 0
	once := func(bit int, field string) {
		if found&bit != 0 {
			p.fail(shown+"."+field, "the field occurs twice")
		}
		found |= bit
	}
	p.object(shown, func(key string, _ int) {
		switch key {
		case "dtype":
			once(dtype, key)
			e.dtype = p.str(shown + ".dtype")
		case "shape":
			once(shape, key)
			e.shape = p.integers(shown+".shape", maxShape)
		case "data_offsets":
			once(offsets, key)
			if both := p.integers(shown+".data_offsets", 2); len(both) == 2 {
				e.from, e.to = both[0], both[1]
			} else {
				p.fail(shown+".data_offsets", "want two numbers")
			}
		default:
			p.fail(shown+"."+clip(key), "unknown field")
		}
	})
	if p.err == nil && found != dtype|shape|offsets {
		p.fail(shown, "dtype, shape or data_offsets is missing")
	}
	p.entries = append(p.entries, e)
}
