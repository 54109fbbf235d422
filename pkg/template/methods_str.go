package template

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// strMethod returns a method of a string, or nil.
func strMethod(t str, name string) Value {
	rewrite := func(f func(string) string) Value {
		return method(name, func(s *state, _ args) (Value, error) { return t.like(f(t.s)), s.alloc(4 * len(t.s)) })
	}
	is := func(f func(rune) bool) Value {
		return method(name, func(s *state, _ args) (Value, error) {
			return t.s != "" && strings.IndexFunc(t.s, func(r rune) bool { return !f(r) }) < 0, s.alloc(len(t.s))
		})
	}
	switch name {
	case "upper":
		return rewrite(upper)
	case "lower":
		return rewrite(lower)
	case "casefold":
		return rewrite(fold)
	case "expandtabs":
		return method(name, func(s *state, a args) (Value, error) {
			return s.expandTabs(t, a.get(0, "tabsize", int64(8)))
		})
	case "title":
		return rewrite(pythonTitle)
	case "capitalize":
		return rewrite(capitalize)
	case "swapcase":
		return rewrite(swapCase)
	case "strip", "lstrip", "rstrip":
		return method(name, func(s *state, a args) (Value, error) {
			return s.strip(t, a.get(0, "chars", nil), name != "rstrip", name != "lstrip")
		})
	case "startswith", "endswith":
		return method(name, func(s *state, a args) (Value, error) { return s.affix(t, name, a) })
	case "removeprefix", "removesuffix":
		return method(name, func(s *state, a args) (Value, error) {
			x, ok := a.get(0, "", nil).(str)
			switch {
			case !ok:
				return nil, s.fail("%s needs a string", name)
			case name == "removeprefix" && strings.HasPrefix(t.s, x.s):
				return t.cut(len(x.s), len(t.s)), s.alloc(16)
			case name == "removesuffix" && strings.HasSuffix(t.s, x.s):
				return t.cut(0, len(t.s)-len(x.s)), s.alloc(16)
			}
			return t, nil
		})
	case "split", "rsplit":
		return method(name, func(s *state, a args) (Value, error) {
			return s.split(t, a.get(0, "sep", nil), a.get(1, "maxsplit", int64(-1)), name == "rsplit")
		})
	case "splitlines":
		return method(name, func(s *state, a args) (Value, error) {
			return s.lines(t, truth(a.get(0, "keepends", false)))
		})
	case "partition", "rpartition":
		return method(name, func(s *state, a args) (Value, error) { return s.partition(t, name, a.get(0, "sep", nil)) })
	case "replace":
		return method(name, func(s *state, a args) (Value, error) {
			return s.replace(t, a.get(0, "old", nil), a.get(1, "new", nil), a.get(2, "count", int64(-1)))
		})
	case "join":
		return method(name, func(s *state, a args) (Value, error) {
			items, err := s.iterate(a.get(0, "iterable", nil))
			if err != nil {
				return nil, err
			}
			for i, item := range items {
				if _, ok := item.(str); !ok {
					return nil, s.fail("join of strings with %s at %d", typeName(item), i)
				}
			}
			return s.joinText(items, t)
		})
	case "find", "rfind", "index", "rindex", "count":
		return method(name, func(s *state, a args) (Value, error) { return s.find(t, name, a) })
	case "format":
		return method(name, func(s *state, a args) (Value, error) { return s.format(t, a) })
	case "zfill", "ljust", "rjust", "center":
		return method(name, func(s *state, a args) (Value, error) { return s.pad(t, name, a) })
	case "isdecimal":
		return is(unicode.IsDigit)
	case "isdigit":
		return is(func(r rune) bool { return unicode.IsDigit(r) || isRaisedDigit(r) })
	case "isnumeric":
		return is(unicode.IsNumber)
	case "isascii":
		return method(name, func(s *state, _ args) (Value, error) {
			return strings.IndexFunc(t.s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0, s.alloc(len(t.s))
		})
	case "isprintable":
		return method(name, func(s *state, _ args) (Value, error) {
			return strings.IndexFunc(t.s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0, s.alloc(len(t.s))
		})
	case "isidentifier":
		return method(name, func(s *state, _ args) (Value, error) {
			return t.s != "" && isNameStart(t.s) && nameLength(t.s) == len(t.s), s.alloc(len(t.s))
		})
	case "istitle":
		return method(name, func(s *state, _ args) (Value, error) { return isTitled(t.s), s.alloc(len(t.s)) })
	case "isalpha":
		return is(unicode.IsLetter)
	case "isalnum":
		return is(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) })
	case "isspace":
		return is(isSpace)
	case "isupper":
		return method(name, func(s *state, _ args) (Value, error) {
			return onlyCase(t.s, unicode.IsUpper, unicode.Other_Uppercase), s.alloc(len(t.s))
		})
	case "islower":
		return method(name, func(s *state, _ args) (Value, error) {
			return onlyCase(t.s, unicode.IsLower, unicode.Other_Lowercase), s.alloc(len(t.s))
		})
	}
	return nil
}

// isRaisedDigit reports whether a character is a superscript or subscript digit.
func isRaisedDigit(r rune) bool {
	return r == '²' || r == '³' || r == '¹' || r == '⁰' || r >= '⁴' && r <= '⁹' || r >= '₀' && r <= '₉'
}

// onlyCase reports whether all cased letters have one case, and at least one exists.
func onlyCase(x string, is func(rune) bool, more *unicode.RangeTable) bool {
	some := false
	for _, r := range x {
		if is(r) || unicode.Is(more, r) {
			some = true
		} else if cased(r) {
			return false
		}
	}
	return some
}
