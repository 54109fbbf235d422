package template

import (
	"errors"
	"slices"
	"strings"
)

// sortFailed carries an error out of a sort.
type sortFailed struct{ error }

// sortBy sorts stably and stops at the first error.
func (s *state) sortBy(order []int, compare func(i, j int) (int, error)) error {
	var failed error
	slices.SortStableFunc(order, func(i, j int) int {
		if failed != nil {
			return 0
		}
		c, err := compare(i, j)
		if err != nil {
			failed = sortFailed{err}
		}
		return c
	})
	var inner sortFailed
	if errors.As(failed, &inner) {
		return inner.error
	}
	return failed
}

// fold lowers a string for a case-insensitive comparison.
func (s *state) fold(v Value, caseSensitive bool) (Value, error) {
	if t, ok := v.(str); ok && !caseSensitive {
		return t.like(lower(t.s)), s.alloc(len(t.s))
	}
	return v, nil
}

func (s *state) sorted(items []Value, attr Value, caseSensitive, reverse bool) ([]Value, error) {
	keys := make([][]Value, len(items))
	paths := []Value{attr}
	if t, ok := attr.(str); ok {
		paths = nil
		for part := range strings.SplitSeq(t.s, ",") {
			paths = append(paths, str{s: part})
		}
	}
	order := make([]int, len(items))
	for i, item := range items {
		order[i] = i
		for _, path := range paths {
			v, err := s.attribute(item, path)
			if err != nil {
				return nil, err
			}
			if v, err = s.fold(v, caseSensitive); err != nil {
				return nil, err
			}
			keys[i] = append(keys[i], v)
		}
	}
	err := s.sortBy(order, func(i, j int) (int, error) {
		for k := range keys[i] {
			same, err := s.equal(keys[i][k], keys[j][k])
			if err == nil && same {
				continue
			}
			c := 0
			if err == nil {
				c, err = s.compare(keys[i][k], keys[j][k])
			}
			if err != nil || c != 0 {
				if reverse {
					c = -c
				}
				return c, err
			}
		}
		return 0, nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]Value, len(items))
	for k, i := range order {
		out[k] = items[i]
	}
	return out, nil
}

func (s *state) dictsort(m *Map, a args) (Value, error) {
	pairs, err := s.pairs(m)
	if err != nil {
		return nil, err
	}
	at := int64(0)
	if by, ok := a.get(1, "by", str{s: "key"}).(str); ok && by.s == "value" {
		at = 1
	}
	out, err := s.sorted(pairs.items, at, truth(a.get(0, "case_sensitive", false)), truth(a.get(2, "reverse", false)))
	return &list{items: out}, err
}

func (s *state) extreme(name string, items []Value, a args) (Value, error) {
	if len(items) == 0 {
		return undefined{name + " of nothing"}, nil
	}
	sorted, err := s.sorted(items, a.get(1, "attribute", nil), truth(a.get(0, "case_sensitive", false)), name == "max")
	if err != nil {
		return nil, err
	}
	return sorted[0], nil
}
