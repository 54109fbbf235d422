package template

import (
	"slices"
	"strconv"
	"strings"
)

// listFilter applies a filter on lists.
func (s *state) listFilter(name string, v Value, a args) (Value, error) {
	if m, ok := v.(*Map); ok && name == "dictsort" {
		return s.dictsort(m, a)
	}
	switch name {
	case "map", "select", "reject", "selectattr", "rejectattr":
		if !truth(v) { // a value of any type
			return generator(nil), nil
		}
	}
	if t, ok := v.(str); ok && name == "reverse" {
		return s.sliceStr(t, [3]*int64{nil, nil, ptr(-1)})
	}
	if l, ok := v.(*list); ok && l.kind == isGenerator {
		switch {
		case name == "first" && len(l.items) > 0:
			first := l.items[0]
			l.items = l.items[1:]
			return first, nil
		case name == "last":
			return nil, s.fail("cannot iterate over a generator in reverse")
		}
	}
	items, err := s.iterate(v)
	if err != nil {
		return nil, err
	}
	if name == "first" {
		if len(items) > 0 {
			return items[0], nil
		}
		return undefined{"the first of nothing"}, nil
	}
	if err := s.alloc(16 * len(items)); err != nil {
		return nil, err
	}
	switch name {
	case "list":
		return &list{items: slices.Clone(items)}, nil
	case "last":
		if len(items) > 0 {
			return items[len(items)-1], nil
		}
		return undefined{"the last of nothing"}, nil
	case "reverse":
		out := slices.Clone(items)
		slices.Reverse(out)
		return generator(out), nil
	case "join":
		return s.join(items, a)
	case "map":
		return s.mapItems(items, a)
	case "select", "reject", "selectattr", "rejectattr":
		return s.selectItems(name, items, a)
	case "sort":
		out, err := s.sorted(items, a.get(2, "attribute", nil), truth(a.get(1, "case_sensitive", false)),
			truth(a.get(0, "reverse", false)))
		return &list{items: out}, err
	case "max", "min":
		return s.extreme(name, items, a)
	case "sum":
		return s.sum(items, a)
	case "unique":
		return s.unique(items, a)
	case "groupby":
		return s.groupby(items, a)
	case "batch":
		return s.batch(items, a)
	case "slice":
		return s.slices(items, a)
	case "dictsort":
		return nil, s.fail("dictsort needs a mapping, not %s", typeName(v))
	default:
		return nil, s.fail("unknown filter %q", name)
	}
}

func ptr(i int64) *int64 { return &i }

// attribute reads an attribute given as a name, a dotted path or an index; without one it
// returns the item itself.
func (s *state) attribute(item, attr Value) (Value, error) {
	switch a := attr.(type) {
	case nil:
		return item, nil
	case str:
		for part := range strings.SplitSeq(a.s, ".") {
			if _, missing := item.(undefined); missing {
				return item, nil
			}
			var key Value = str{s: part}
			if i, err := strconv.ParseInt(part, 10, 64); err == nil {
				key = i
			}
			var err error
			if item, err = s.item(item, key); err != nil {
				return nil, err
			}
		}
		return item, nil
	default:
		return s.item(item, attr)
	}
}

func (s *state) join(items []Value, a args) (Value, error) {
	sep, err := s.text(a.get(0, "d", str{}))
	if err != nil {
		return nil, err
	}
	if attr := a.get(1, "attribute", nil); attr != nil {
		picked := make([]Value, len(items))
		for i, item := range items {
			if picked[i], err = s.attribute(item, attr); err != nil {
				return nil, err
			}
		}
		items = picked
	}
	return s.joinText(items, sep)
}

func (s *state) joinText(items []Value, sep str) (Value, error) {
	var m marked
	for i, item := range items {
		t, err := s.text(item)
		if err != nil {
			return nil, err
		}
		if err := s.alloc(len(t.s) + len(sep.s) + 16*(len(t.data)+len(sep.data))); err != nil {
			return nil, err
		}
		if err := s.step(1); err != nil {
			return nil, err
		}
		if i > 0 {
			m.addStr(sep)
		}
		m.addStr(t)
	}
	return m.str(), nil
}

func (s *state) sum(items []Value, a args) (Value, error) {
	total := a.get(1, "start", int64(0))
	for _, item := range items {
		v, err := s.attribute(item, a.get(0, "attribute", nil))
		if err != nil {
			return nil, err
		}
		if total, err = s.arithmetic("+", total, v); err != nil {
			return nil, err
		}
	}
	return total, nil
}

func (s *state) unique(items []Value, a args) (Value, error) {
	seen := map[string]bool{}
	out := generator(nil)
	for _, item := range items {
		v, err := s.attribute(item, a.get(1, "attribute", nil))
		if err != nil {
			return nil, err
		}
		if v, err = s.fold(v, truth(a.get(0, "case_sensitive", false))); err != nil {
			return nil, err
		}
		k, ok := hashKey(v)
		if !ok {
			return nil, s.fail("unique needs values that can be keys, not %s", typeName(v))
		}
		if err := s.alloc(16 + len(k)); err != nil {
			return nil, err
		}
		if !seen[k] {
			seen[k] = true
			out.items = append(out.items, item)
		}
	}
	return out, nil
}

func (s *state) groupby(items []Value, a args) (Value, error) {
	attr := a.get(0, "attribute", nil)
	sorted, err := s.sorted(items, attr, truth(a.get(2, "case_sensitive", false)), false)
	if err != nil {
		return nil, err
	}
	out := &list{}
	var group *list
	var last Value
	for _, item := range sorted {
		v, err := s.attribute(item, attr)
		if err != nil {
			return nil, err
		}
		same := false
		if group != nil {
			if same, err = s.equal(last, v); err != nil {
				return nil, err
			}
		}
		if !same {
			group, last = &list{}, v
			out.items = append(out.items, &list{items: []Value{v, group}, kind: isTuple, group: true})
		}
		group.items = append(group.items, item)
	}
	return out, s.alloc(128 * len(out.items))
}

func (s *state) batch(items []Value, a args) (Value, error) {
	n, ok := count(a.get(0, "linecount", nil))
	if !ok || n == 0 {
		return nil, s.fail("batch needs a count")
	}
	fill := a.get(1, "fill_with", nil)
	out := generator(nil)
	for part := range slices.Chunk(items, min(n, len(items)+1)) {
		row := slices.Clone(part)
		if fill != nil && len(row) < n {
			if err := s.alloc(16 * (n - len(row))); err != nil {
				return nil, err
			}
			for len(row) < n {
				row = append(row, fill)
			}
		}
		out.items = append(out.items, &list{items: row})
	}
	return out, s.alloc(64 * len(out.items))
}

// slices splits a list into n columns, the first ones longer.
func (s *state) slices(items []Value, a args) (Value, error) {
	n, ok := count(a.get(0, "slices", nil))
	if !ok || n == 0 {
		return nil, s.fail("slice needs a count")
	}
	if err := s.alloc(64 * min(n, 1<<40)); err != nil {
		return nil, err
	}
	fill := a.get(1, "fill_with", nil)
	out := generator(nil)
	size, extra := len(items)/n, len(items)%n
	at := 0
	for i := range n {
		end := at + size
		if i < extra {
			end++
		}
		row := slices.Clone(items[at:end])
		if fill != nil && i >= extra && extra > 0 {
			row = append(row, fill)
		}
		out.items = append(out.items, &list{items: row})
		at = end
	}
	return out, nil
}
