package template

import "fmt"

// listKind is the Python sequence that a list represents.
type listKind uint8

const (
	isList listKind = iota
	isTuple
	isRange
	isKeys
	isValues
	isItems
	isGenerator // the result of a lazy filter, which can be iterated once
)

// String returns the name of the kind, for error messages.
func (k listKind) String() string {
	return [...]string{"list", "tuple", "range", "keys", "values", "items", "generator"}[k]
}

// list is a sequence of values.
type list struct {
	items        []Value
	kind         listKind
	from, to, by int64 // of a range
	failed       error // of a generator: the error of iterating it
	group        bool  // a pair of groupby: grouper and list
}

// generator makes the result of a filter that is lazy in Python.
func generator(items []Value) *list { return &list{items: items, kind: isGenerator} }

// take returns the items; a generator is empty afterwards.
func (l *list) take() ([]Value, error) {
	items, err := l.items, l.failed
	if l.kind == isGenerator {
		l.items, l.failed = nil, nil
	}
	return items, err
}

// isLazy reports whether a filter fails only when its result is iterated.
func isLazy(filter string) bool {
	switch filter {
	case "batch", "items", "map", "reject", "rejectattr", "select", "selectattr", "slice", "unique":
		return true
	}
	return false
}

// brackets returns what Python's repr puts around the items; whole says that open is the
// whole text.
func (l *list) brackets() (open, end string, whole bool) {
	switch l.kind {
	case isTuple:
		if len(l.items) == 1 {
			return "(", ",)", false
		}
		return "(", ")", false
	case isRange:
		if l.by != 1 {
			return fmt.Sprintf("range(%d, %d, %d)", l.from, l.to, l.by), "", true
		}
		return fmt.Sprintf("range(%d, %d)", l.from, l.to), "", true
	case isKeys, isValues, isItems:
		return "dict_" + l.kind.String() + "([", "])", false
	case isGenerator:
		return "<generator object>", "", true
	}
	return "[", "]", false
}
