package template

import "fmt"

// listKind says which of Python's sequences a list stands for.
type listKind uint8

const (
	isList listKind = iota
	isTuple
	isRange
	isKeys
	isValues
	isItems
	isGenerator // what a lazy filter returns: it can be gone through once
)

// String is the kind as error texts name it.
func (k listKind) String() string {
	return [...]string{"list", "tuple", "range", "keys", "values", "items", "generator"}[k]
}

// list is a row of values.
type list struct {
	items        []Value
	kind         listKind
	from, to, by int64 // of a range
	failed       error // of a generator: what going through it says
	group        bool  // a pair of groupby: grouper and list
}

// generator is what a filter returns that Python evaluates lazily.
func generator(items []Value) *list { return &list{items: items, kind: isGenerator} }

// take lists the items; a generator is empty afterwards.
func (l *list) take() ([]Value, error) {
	items, err := l.items, l.failed
	if l.kind == isGenerator {
		l.items, l.failed = nil, nil
	}
	return items, err
}

// isLazy says whether a filter fails only when what it returns is gone through.
func isLazy(filter string) bool {
	switch filter {
	case "batch", "items", "map", "reject", "rejectattr", "select", "selectattr", "slice", "unique":
		return true
	}
	return false
}

// brackets are what Python's repr puts around the items; whole says that open is
// all of it.
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
