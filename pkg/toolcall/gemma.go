package toolcall

import "strings"

// gemma parses call:name{key:value,…} between markers. Strings have delimiters of their
// own and keys have none.
func gemma(open, end, quote string) func(p *Parser) {
	return func(p *Parser) {
		p.keep = true
		p.marks = append(p.marks, mark{open, func(p *Parser) {
			p.begin(open)
			looked := 0 // position up to which the end of a call was searched for
			p.state = func(p *Parser) bool {
				var name, arguments string
				found := false
				for !found { // a string may contain the marker too
					i := strings.Index(p.buf[looked:], end)
					if i < 0 {
						break
					}
					if name, arguments, found = gemmaCall(p.buf[:looked+i], quote, true); found {
						p.eat(looked + i + len(end))
					} else {
						looked += i + len(end)
					}
				}
				if !found {
					if !p.final {
						return false
					}
					body, ok := p.until(end)
					if !ok {
						return p.ended()
					}
					if name, arguments, ok = gemmaCall(body, quote, false); !ok {
						return p.fail()
					}
				}
				p.name(name, "")
				p.argue(arguments)
				p.state = text
				return true
			}
		}})
	}
}

// gemmaCall parses one call. In strict mode a value without quotes must not begin with a
// quote character.
func gemmaCall(s, quote string, strict bool) (name, arguments string, ok bool) {
	s, ok = strings.CutPrefix(strings.TrimSpace(s), "call:")
	name, _, braced := strings.Cut(s, "{")
	if !ok || !braced || !isName(name) {
		return "", "", false
	}
	l := gemmaLexer{pyLexer{s: s, at: len(name)}, quote, strict}
	arguments, ok = l.value(0)
	l.space()
	return name, arguments, ok && l.at == len(s)
}

type gemmaLexer struct {
	pyLexer
	quote  string
	strict bool
}

func (l *gemmaLexer) value(depth int) (string, bool) {
	l.space()
	if depth > maxDepth {
		return "", false
	}
	if rest, ok := strings.CutPrefix(l.s[l.at:], l.quote); ok {
		inner, _, ok := strings.Cut(rest, l.quote)
		if !ok {
			return "", false
		}
		l.at += len(inner) + 2*len(l.quote)
		return marshal(inner), true
	}
	switch {
	case l.take('{'):
		return l.row('}', depth)
	case l.take('['):
		return l.row(']', depth)
	}
	from := l.at
	if v, ok := l.pyLexer.value(depth); ok {
		if l.space(); l.at >= len(l.s) || strings.IndexByte(",]}", l.s[l.at]) >= 0 {
			return v, true
		}
	}
	l.at = from // an unquoted word is a string
	n := strings.IndexAny(l.s[from:], ",]}")
	if n <= 0 || l.strict && l.s[from] == '"' {
		return "", false
	}
	l.at += n
	return marshal(strings.TrimSpace(l.s[from:l.at])), true
}

// row parses the items of a list, or the keys and values of a mapping.
func (l *gemmaLexer) row(end byte, depth int) (string, bool) {
	var b strings.Builder
	open := end - 2
	b.WriteByte(open)
	for n := 0; !l.take(end); n++ {
		if n > 0 {
			if !l.take(',') {
				return "", false
			}
			b.WriteString(", ")
		}
		if end == '}' {
			key, ok := "", true
			if l.space(); strings.HasPrefix(l.s[l.at:], l.quote) {
				key, ok = l.value(depth + 1)
			} else if l.at < len(l.s) && l.s[l.at] == '"' {
				key, ok = l.text()
				key = marshal(key)
			} else {
				i := strings.IndexByte(l.s[l.at:], ':')
				if i <= 0 {
					return "", false
				}
				key = marshal(strings.Trim(l.s[l.at:l.at+i], white+`"`))
				l.at += i
			}
			if !ok || !l.take(':') {
				return "", false
			}
			b.WriteString(key + ": ")
		}
		v, ok := l.value(depth + 1)
		if !ok {
			return "", false
		}
		b.WriteString(v)
	}
	b.WriteByte(end)
	return b.String(), true
}
