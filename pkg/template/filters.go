package template

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// isFilter reports whether a filter exists.
func isFilter(name string) bool {
	switch name {
	case "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape",
		"filesizeformat", "first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join",
		"last", "length", "list", "lower", "map", "max", "min", "pprint", "reject", "rejectattr", "replace", "reverse",
		"round", "safe", "select", "selectattr", "slice", "sort", "string", "striptags", "sum", "title", "tojson",
		"trim", "truncate", "unique", "upper", "urlencode", "wordcount", "wordwrap", "xmlattr":
		return true
	}
	return false
}

// filter applies a filter to a value.
func (s *state) filter(name string, v Value, a args) (Value, error) {
	if err := s.step(1); err != nil {
		return nil, err
	}
	out, err := s.apply(name, v, a)
	var render *RenderError
	if isLazy(name) && errors.As(err, &render) {
		return &list{kind: isGenerator, failed: err}, nil
	}
	return out, err
}

func (s *state) apply(name string, v Value, a args) (Value, error) {
	switch name {
	case "default", "d":
		_, missing := v.(undefined)
		if missing || truth(a.get(1, "boolean", false)) && !truth(v) {
			return a.get(0, "default_value", str{}), nil
		}
		return v, nil
	case "length", "count":
		return s.length(v)
	case "tojson":
		return s.tojson(v, a)
	case "int":
		return s.toInt(v, a)
	case "float":
		return s.toFloat(v, a)
	case "abs":
		return s.abs(v)
	case "round":
		return s.round(v, a)
	case "attr":
		key, ok := a.get(0, "name", nil).(str)
		if !ok {
			return nil, s.fail("attr needs a name")
		}
		if m, ok := v.(*Map); ok && !m.namespace && mapMethod(m, key.s) == nil {
			return undefined{key.s}, nil
		}
		return s.attr(v, key.s)
	case "items":
		switch m := v.(type) {
		case *Map:
			pairs, err := s.pairs(m)
			return generator(pairs.items), err
		case undefined:
			return generator(nil), nil
		}
		return nil, s.fail("items needs a mapping, not %s", typeName(v))
	case "filesizeformat":
		return s.fileSize(v, a)
	case "pprint":
		out, err := s.quoted(v, false)
		return out, err
	case "xmlattr":
		return s.xmlAttributes(v, a)
	case "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace", "safe", "string",
		"striptags", "title", "trim", "truncate", "upper", "urlencode", "wordcount", "wordwrap":
		return s.textFilter(name, v, a)
	default:
		return s.listFilter(name, v, a)
	}
}

// textFilter applies a filter on text.
func (s *state) textFilter(name string, v Value, a args) (Value, error) {
	t, err := s.text(v)
	if err != nil {
		return nil, err
	}
	switch name {
	case "capitalize", "lower", "upper", "title", "striptags", "urlencode", "wordcount", "wordwrap":
		if err := s.alloc(4 * len(t.s)); err != nil {
			return nil, err
		}
	}
	switch name {
	case "capitalize":
		return t.like(capitalize(t.s)), nil
	case "lower":
		return t.like(lower(t.s)), nil
	case "upper":
		return t.like(upper(t.s)), nil
	case "title":
		return t.plain().like(jinjaTitle(t.s)), nil
	case "string":
		return t, nil
	case "safe":
		t.safe = true
		return t, nil
	case "e", "escape":
		out, err := s.escape(t)
		return out, err
	case "forceescape":
		out, err := s.escape(t.plain())
		return out, err
	case "striptags":
		return t.plain().like(stripTags(t.s)), nil
	case "wordwrap":
		return s.wordwrap(t, a)
	case "trim":
		return s.strip(t, a.get(0, "chars", nil), true, true)
	case "replace":
		return s.replace(t.plain(), a.get(0, "old", nil), a.get(1, "new", nil), a.get(2, "count", int64(-1)))
	case "center":
		return s.pad(t, name, a)
	case "format":
		if len(a.names) > 0 {
			named, err := s.mapping(args{names: a.names, named: a.named})
			if err != nil {
				return nil, err
			}
			return s.percent(t, named)
		}
		return s.percent(t, &list{items: a.pos, kind: isTuple})
	case "indent":
		return s.indent(t, a)
	case "truncate":
		return s.truncate(t, a)
	case "urlencode":
		if m, ok := v.(*Map); ok {
			return s.urlQuery(m)
		}
		return t.plain().like(urlQuote(t.s, false)), nil
	default: // wordcount
		return int64(len(strings.FieldsFunc(t.s, func(r rune) bool {
			return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		}))), nil
	}
}

func (s *state) indent(t str, a args) (Value, error) {
	by, ok := a.get(0, "width", int64(4)).(str)
	if !ok {
		n, ok := count(a.get(0, "width", int64(4)))
		if !ok || n > 1000 {
			return nil, s.fail("indent needs a width up to 1000")
		}
		by = str{s: strings.Repeat(" ", n)}
	}
	first, blank := truth(a.get(1, "first", false)), truth(a.get(2, "blank", false))
	n := strings.Count(t.s, "\n") + 1
	if err := s.alloc(len(t.s) + n*(len(by.s)+16) + 16*len(t.data)); err != nil {
		return nil, err
	}
	if err := s.step(n * (1 + len(t.data)/8)); err != nil {
		return nil, err
	}
	var m marked
	for i, line := range t.split("\n", -1) {
		l := line.(str)
		if i > 0 {
			m.add("\n")
		}
		if i == 0 && first || i > 0 && (blank || l.s != "") {
			m.addStr(by)
		}
		m.addStr(l)
	}
	return m.str(), nil
}

func (s *state) truncate(t str, a args) (Value, error) {
	length, ok := count(a.get(0, "length", int64(255)))
	if !ok {
		return nil, s.fail("truncate needs a length")
	}
	end, err := s.text(a.get(2, "end", str{s: "..."}))
	if err != nil {
		return nil, err
	}
	leeway, ok := count(a.get(3, "leeway", int64(5)))
	if !ok {
		leeway = 5
	}
	if n := utf8.RuneCountInString(t.s); n <= length || n-length <= leeway {
		return t, nil
	}
	keep := length - utf8.RuneCountInString(end.s)
	if keep < 0 {
		return nil, s.fail("truncate needs a length of at least its ending")
	}
	cut := t.cut(0, offset(t.s, keep))
	if !truth(a.get(1, "killwords", false)) {
		if i := strings.LastIndexByte(cut.s, ' '); i >= 0 {
			cut = cut.cut(0, i)
		}
	}
	out, err := s.concat(cut, end)
	return out, err
}

func (s *state) length(v Value) (Value, error) {
	switch x := v.(type) {
	case undefined:
		return int64(0), nil
	case str:
		return int64(utf8.RuneCountInString(x.s)), s.step(len(x.s) / 64)
	case *list:
		if x.kind != isGenerator {
			return int64(len(x.items)), nil
		}
	case *Map:
		return int64(len(x.keys)), nil
	}
	return nil, s.fail("%s has no length", typeName(v))
}

func (s *state) tojson(v Value, a args) (Value, error) {
	if u, ok := v.(undefined); ok {
		return nil, s.fail("cannot write %q, which is undefined, as json", u.name)
	}
	st := &jsonStyle{ascii: truth(a.get(0, "ensure_ascii", false)), sortKeys: truth(a.get(3, "sort_keys", false)),
		item: ", ", key: ": "}
	switch in := a.get(1, "indent", nil).(type) {
	case nil:
	case str:
		st.pretty, st.indent = true, in.s
	default:
		n, ok := count(in)
		if !ok || n > 100 {
			return nil, s.fail("tojson needs an indent up to 100")
		}
		st.pretty, st.indent = true, strings.Repeat(" ", n)
	}
	if len(st.indent) > 100 {
		return nil, s.fail("tojson needs an indent up to 100")
	}
	if st.pretty {
		st.item = ","
	}
	if l, ok := a.get(2, "separators", nil).(*list); ok {
		if len(l.items) != 2 {
			return nil, s.fail("tojson needs two separators")
		}
		item, ok1 := l.items[0].(str)
		key, ok2 := l.items[1].(str)
		if !ok1 || !ok2 || len(item.s)+len(key.s) > 100 {
			return nil, s.fail("tojson needs two short separators")
		}
		st.item, st.key = item.s, key.s
	}
	var m marked
	if err := s.encodeJSON(&m, v, st, 0); err != nil {
		return nil, err
	}
	return m.str(), s.alloc(m.len() + 16*len(m.data))
}

func (s *state) toInt(v Value, a args) (Value, error) {
	other := a.get(0, "default", int64(0))
	switch x := v.(type) {
	case undefined:
		return nil, s.fail("cannot make a number of %q, which is undefined", x.name)
	case bool, int64:
		_, i, _ := number(x)
		return i, nil
	case float64:
		if math.Abs(x) < 1<<62 {
			return int64(x), nil
		}
		return other, nil
	case str:
		base := int64(10)
		if _, b, exact := number(a.get(1, "base", int64(10))); exact && b >= 2 && b <= 36 {
			base = b
		}
		text := strings.TrimFunc(x.s, isSpace)
		if len(text) > 1000 {
			return other, nil
		}
		text = strings.ReplaceAll(text, "_", "")
		if low := strings.ToLower(text); base == 16 && strings.HasPrefix(low, "0x") ||
			base == 8 && strings.HasPrefix(low, "0o") ||
			base == 2 && strings.HasPrefix(low, "0b") {
			text = text[2:]
		}
		if i, err := strconv.ParseInt(text, int(base), 64); err == nil {
			return i, nil
		}
		if f, err := strconv.ParseFloat(text, 64); err == nil && math.Abs(f) < 1<<62 {
			return int64(f), nil
		}
	}
	return other, nil
}

func (s *state) toFloat(v Value, a args) (Value, error) {
	if isNumber(v) {
		f, _, _ := number(v)
		return f, nil
	}
	if u, ok := v.(undefined); ok {
		return nil, s.fail("cannot make a number of %q, which is undefined", u.name)
	}
	if x, ok := v.(str); ok && len(x.s) < 1000 {
		if f, err := strconv.ParseFloat(strings.TrimFunc(x.s, isSpace), 64); err == nil {
			return f, nil
		}
	}
	return a.get(0, "default", 0.0), nil
}

func (s *state) abs(v Value) (Value, error) {
	if !isNumber(v) {
		return nil, s.fail("abs needs a number, not %s", typeName(v))
	}
	f, i, exact := number(v)
	if !exact {
		return math.Abs(f), nil
	}
	return max(i, -i), nil
}

func (s *state) round(v Value, a args) (Value, error) {
	if !isNumber(v) {
		return nil, s.fail("round needs a number, not %s", typeName(v))
	}
	f, i, whole := number(v)
	_, digits, exact := number(a.get(0, "precision", int64(0)))
	if !exact || digits < -300 || digits > 300 {
		return nil, s.fail("round needs a precision")
	}
	how, _ := a.get(1, "method", str{s: "common"}).(str)
	scale := math.Pow(10, float64(digits))
	switch {
	case how.s == "common" && whole:
		return roundInteger(i, digits), nil
	case how.s == "common" && digits < 0:
		return math.RoundToEven(f*scale) / scale, nil
	case how.s == "common": // ties are decided by the decimal digits, as in Python
		r, err := strconv.ParseFloat(strconv.FormatFloat(f, 'f', int(digits), 64), 64)
		if err != nil {
			return nil, s.fail("cannot round %g", f)
		}
		return r, nil
	case how.s == "ceil":
		return math.Ceil(f*scale) / scale, nil
	case how.s == "floor":
		return math.Floor(f*scale) / scale, nil
	}
	return nil, s.fail("round needs common, ceil or floor, not %q", how.s)
}

// roundInteger rounds to tens, hundreds and so on, ties to even.
func roundInteger(i, digits int64) int64 {
	if digits >= 0 {
		return i
	}
	if digits < -18 {
		return 0
	}
	unit := int64(1)
	for ; digits < 0; digits++ {
		unit *= 10
	}
	q, r := i/unit, i%unit
	if r < 0 {
		q, r = q-1, r+unit
	}
	if r > unit/2 || r == unit/2 && q%2 != 0 {
		q++
	}
	return q * unit
}
