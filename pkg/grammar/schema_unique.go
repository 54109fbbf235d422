package grammar

// itemCount is an array whose items must differ: it is empty unless there are as
// many different items as it wants.
type itemCount struct {
	array int   // its rule
	items []int // rules of items
	want  int
	path  string
}

// maxDifferent bounds minItems where items must differ.
const maxDifferent = 1000

// differing is an array whose items must differ: rules with the roles that the
// matcher knows, items spelled in one way alone.
func (b *schemaBuilder) differing(a *arraySet) (*expr, error) {
	if b.strict {
		return nil, &UnsupportedError{Kind: "schema", Feature: "uniqueItems", Path: a.path, Why: "it is an array within items that must differ themselves"}
	}
	if a.min > maxDifferent {
		return nil, &LimitError{What: "items that must differ", Limit: maxDifferent}
	}
	known := map[string]*expr{}
	count := itemCount{want: a.min, path: a.path}
	body, err := b.items(a, func(t terms) (*expr, error) {
		key := string(termBytes(t))
		if e := known[key]; e != nil {
			return e, nil
		}
		b.strict, b.unique = true, a.path
		v, err := b.value(t)
		b.strict = false
		if err != nil || v.op == opFail {
			return v, err
		}
		id, err := b.add("item", v, true)
		if err != nil {
			return nil, err
		}
		b.rules[id].role = uniqueItem
		known[key] = ref(id)
		count.items = append(count.items, id)
		return known[key], nil
	})
	if err != nil {
		return nil, err
	}
	if count.array, err = b.add("array", body, true); err != nil {
		return nil, err
	}
	b.rules[count.array].role = uniqueArray
	if a.min > 1 {
		b.counts = append(b.counts, count)
	}
	return ref(count.array), nil
}

// countItems finds arrays that want more different items than there are.
func (b *schemaBuilder) countItems() error {
	for _, c := range b.counts {
		subs := make([]*expr, len(c.items))
		for i, id := range c.items {
			subs[i] = b.rules[id].body
		}
		g := &Grammar{rules: append(b.rules[:len(b.rules):len(b.rules)], rule{name: "items", body: alt(subs...)}), root: len(b.rules), kind: "schema"}
		prog, err := g.program()
		if err != nil {
			b.rules[c.array].body = fail()
			continue
		}
		n, all, err := newMachine(prog).different(int32(g.root), c.want)
		switch {
		case err != nil:
			return err
		case n < c.want && all:
			b.rules[c.array].body = fail()
		case n < c.want:
			return &UnsupportedError{Kind: "schema", Feature: "uniqueItems", Path: c.path, Why: "it is not known whether there are as many different items as minItems wants"}
		}
	}
	return nil
}

// different counts the texts of a rule up to want, and says whether those are all.
// It goes on from a number of beginnings at a time, so that it may miss some.
func (m *machine) different(rule int32, want int) (n int, all bool, err error) {
	p, err := m.at(m.start(rule), m.stacks.bottom, nil)
	if err != nil {
		return 0, false, err
	}
	all = true
	beam := []*position{p}
	for depth := 0; len(beam) > 0 && n < want; depth++ {
		if depth > 10*maxDifferent {
			return n, false, nil
		}
		var next []*position
		for _, p := range beam {
			if p.canEnd {
				n++
			}
			for b := range m.allowed(p).all() {
				if len(next) > 4*want {
					all = false
					break
				}
				q, err := m.raw(p, b)
				if err != nil {
					return n, false, err
				}
				if q != m.nowhere {
					next = append(next, q)
				}
			}
		}
		beam = next
	}
	return n, all, nil
}

// strictNumber is the numbers of n, each as short as it can be written.
func (b *schemaBuilder) strictNumber(n *numberSet) (*expr, error) {
	key := "strict number " + n.key()
	return b.shared(key, false, func() (*expr, error) {
		l := b.x.langs[shortNumber]
		if l == nil {
			node, err := parseRegex(shortNumber)
			if err != nil {
				return nil, err
			}
			l = &lang{key: shortNumber, node: node, whole: true}
			b.x.langs[shortNumber] = l
		}
		short, err := l.dfa()
		if err != nil {
			return nil, err
		}
		d, err := numberDFA(n, b.wholeCap, b.fractionCap)
		if err != nil {
			return nil, err
		}
		if d, err = intersectDFA(d, short); err != nil {
			return nil, err
		}
		return d.minimal().graph(plainUTF8), nil
	})
}

const shortNumber = `0|-?[1-9][0-9]*(?:\.[0-9]*[1-9])?|-?0\.[0-9]*[1-9]`
