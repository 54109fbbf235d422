package template

import (
	"math"
	"unicode"
)

// isTest reports whether a test exists.
func isTest(name string) bool {
	switch name {
	case "boolean", "callable", "defined", "divisibleby", "eq", "equalto", "escaped", "even", "false", "filter",
		"float", "ge", "greaterthan", "gt", "in", "integer", "iterable", "le", "lessthan", "lower", "lt", "mapping",
		"ne", "none", "number", "odd", "sameas", "sequence", "string", "test", "true", "undefined", "upper":
		return true
	}
	return false
}

// test applies "is name".
func (s *state) test(name string, v Value, a args) (bool, error) {
	if err := s.step(1); err != nil {
		return false, err
	}
	text, isText := v.(str)
	_, isUndefined := v.(undefined)
	f, i, exact := number(v)
	_, isBool := v.(bool)
	_, isBig := v.(bigInt)
	switch name {
	case "boolean":
		return isBool, nil
	case "callable":
		switch v.(type) {
		case *function, *macro, *counter:
			return true, nil
		}
		return false, nil
	case "defined":
		return !isUndefined, nil
	case "undefined":
		return isUndefined, nil
	case "escaped":
		return text.safe, nil
	case "false", "true":
		return v == (name == "true"), nil
	case "none":
		return v == nil, nil
	case "float":
		_, ok := v.(float64)
		return ok, nil
	case "integer":
		return exact && isNumber(v) && !isBool || isBig, nil
	case "number":
		return isNumber(v) || isBig, nil
	case "string":
		return isText, nil
	case "mapping":
		m, ok := v.(*Map)
		return ok && !m.namespace, nil
	case "sequence", "iterable":
		switch x := v.(type) {
		case *list:
			return name == "iterable" || x.kind <= isRange, nil
		case str, undefined:
			return true, nil
		case *Map:
			return !x.namespace, nil
		}
		return false, nil
	case "lower", "upper":
		if !isText {
			var err error
			if text, err = s.text(v); err != nil {
				return false, err
			}
		}
		if name == "upper" {
			return onlyCase(text.s, unicode.IsUpper, unicode.Other_Uppercase), s.alloc(len(text.s))
		}
		return onlyCase(text.s, unicode.IsLower, unicode.Other_Lowercase), s.alloc(len(text.s))
	case "even", "odd":
		if !isNumber(v) {
			return false, s.fail("%s needs a number, not %s", name, typeName(v))
		}
		if !exact {
			rest := math.Abs(math.Mod(f, 2))
			return name == "even" && rest == 0 || name == "odd" && rest == 1, nil
		}
		return (i%2 == 0) == (name == "even"), nil
	case "filter", "test":
		if name == "filter" {
			return isText && isFilter(text.s), nil
		}
		return isText && isTest(text.s), nil
	}
	if !isTest(name) {
		return false, s.fail("unknown test %q", name)
	}
	if len(a.pos) == 0 {
		return false, s.fail("test %q needs an argument", name)
	}
	other := a.pos[0]
	switch name {
	case "divisibleby":
		_, j, exact2 := number(other)
		if !exact || !exact2 || j == 0 || !isNumber(v) || !isNumber(other) {
			return false, s.fail("divisibleby needs integers")
		}
		return j == -1 || i%j == 0, nil
	case "eq", "equalto":
		return s.equal(v, other)
	case "ne":
		same, err := s.equal(v, other)
		return !same, err
	case "in":
		return s.contains(other, v)
	case "sameas":
		switch x := v.(type) {
		case str:
			y, ok := other.(str)
			return ok && x.s == y.s, nil
		case undefined:
			_, ok := other.(undefined)
			return ok, nil
		case *function:
			return false, nil
		}
		return v == other, nil
	default:
		c, err := s.compare(v, other)
		switch name {
		case "lt", "lessthan":
			return c < 0, err
		case "le":
			return c <= 0, err
		case "gt", "greaterthan":
			return c > 0, err
		default:
			return c >= 0, err
		}
	}
}
