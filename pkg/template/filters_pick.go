package template

import "strings"

func (s *state) mapItems(items []Value, a args) (Value, error) {
	out := make([]Value, len(items))
	attr := a.get(-1, "attribute", nil)
	if attr == nil {
		name, ok := a.get(0, "", nil).(str)
		if !ok || !isFilter(name.s) {
			return nil, s.fail("map needs a filter or an attribute")
		}
		rest := args{pos: a.pos[1:], names: a.names, named: a.named}
		for i, item := range items {
			var err error
			if out[i], err = s.filter(name.s, item, rest); err != nil {
				return nil, err
			}
		}
		return generator(out), nil
	}
	for i, item := range items {
		v, err := s.attribute(item, attr)
		if err != nil {
			return nil, err
		}
		if _, missing := v.(undefined); missing {
			v = a.get(-1, "default", v)
		}
		out[i] = v
	}
	return generator(out), nil
}

func (s *state) selectItems(name string, items []Value, a args) (Value, error) {
	keep := strings.HasPrefix(name, "select")
	var attr Value
	rest := a.pos
	if strings.HasSuffix(name, "attr") {
		if len(rest) == 0 {
			return nil, s.fail("%s needs an attribute", name)
		}
		attr, rest = rest[0], rest[1:]
	}
	test := ""
	if len(rest) > 0 {
		t, ok := rest[0].(str)
		if !ok {
			return nil, s.fail("%s needs the name of a test", name)
		}
		switch t.s {
		case "==":
			t.s = "eq"
		case "!=":
			t.s = "ne"
		case "<":
			t.s = "lt"
		case "<=":
			t.s = "le"
		case ">":
			t.s = "gt"
		case ">=":
			t.s = "ge"
		}
		if !isTest(t.s) {
			return nil, s.fail("unknown test %q", t.s)
		}
		test, rest = t.s, rest[1:]
	}
	out := generator(nil)
	for _, item := range items {
		v, err := s.attribute(item, attr)
		if err != nil {
			return nil, err
		}
		ok := truth(v)
		if test != "" {
			if ok, err = s.test(test, v, args{pos: rest}); err != nil {
				return nil, err
			}
		}
		if ok == keep {
			out.items = append(out.items, item)
		}
		if err := s.step(1); err != nil {
			return nil, err
		}
	}
	return out, nil
}
