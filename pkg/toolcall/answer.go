package toolcall

import "strings"

// spelling describes how a family writes its calls.
type spelling struct {
	// open is the marker that begins the calls. Where bare is set, calls may also begin
	// without it at the beginning of the answer, which must then not begin with notFirst.
	open     string
	bare     bool
	notFirst string
	// known lists further markers that the parser takes for the beginning of calls.
	known []string
	// each: head, open and tail surround every single call; otherwise they surround all
	// calls together.
	each       bool
	head, tail part
	between    part
	call       func(t offered) (part, error)
	// said is the text that content begins with when the prompt ends with open.
	said string
}

// calls holds what may follow open or, where calls are bare, the whole answer.
func (w *writer) calls(s *spelling, open string) (part, error) {
	var all []part
	for _, t := range w.tools {
		one, err := s.call(t)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	one := either(all...)
	if s.each {
		one = row(s.head, one, s.tail)
	}
	out := []part{w.mark(open)}
	if !s.each {
		out = append(out, s.head)
	}
	out = append(out, one)
	if !w.o.Single {
		more := []part{s.between, one}
		if s.each && !s.bare {
			more = []part{s.between, w.mark(s.open), one}
		}
		out = append(out, many(row(more...)))
	}
	if !s.each {
		out = append(out, s.tail)
	}
	return row(out...), nil
}

// white is the white space that may precede calls.
func white4() part { return pattern(`[ \t\n]{0,4}`) }

// answer builds the whole answer: the optional reasoning, then content, calls, or both.
func (w *writer) answer(s *spelling) (part, error) {
	begin, rest := w.trigger(s.open)
	after, err := w.calls(s, rest)
	if err != nil {
		return nil, err
	}
	whole := row(w.mark(s.open), after)
	if s.bare {
		whole = after
		if s.open != "" {
			whole = row(maybe(row(w.mark(s.open), white4())), after)
		}
	}
	calls := row(white4(), whole)
	begun := s.said != "" && strings.HasSuffix(w.o.Prompt, s.open)
	if begun {
		if calls, err = w.calls(s, ""); err != nil {
			return nil, err
		}
	}
	switch {
	case begun && w.o.Required:
		return calls, nil
	case begun && w.o.Content != nil:
		return either(calls, row(constant(s.said), w.content())), nil
	case begun:
		return either(calls, row(constant(s.said), w.free(s, begin, after))), nil
	case w.o.Required:
		return row(w.reasoning(s), calls), nil
	case w.o.Content != nil:
		return row(w.reasoning(s), either(calls, row(white4(), w.content()))), nil
	}
	free := w.free(s, begin, after)
	if len(w.think.silent) > 0 { // around content
		var silent []part
		for _, m := range w.think.silent {
			silent = append(silent, w.mark(m))
		}
		free = row(maybe(either(silent...)), free, maybe(row(either(silent...), maybe(calls))))
	}
	if s.bare {
		free = either(calls, free)
	}
	return row(w.reasoning(s), free), nil
}

// free builds text without markers, which calls may follow.
func (w *writer) free(s *spelling, begin any, calls part) part {
	out := part{"type": "any_text", "excludes": w.markers(s)}
	if s.open != "" {
		out = part{"type": "triggered_tags", "triggers": w.markers(s), "stop_after_first": true,
			"tags": []part{{"begin": begin, "content": calls}}}
	}
	if s.notFirst != "" {
		out["not_first"] = s.notFirst
	}
	return out
}

// content builds the constraint on an answer that is not a call.
func (w *writer) content() part {
	return part{"type": "sequence", "elements": []rawPart{rawPart(w.o.Content)}}
}

// rawPart is a part that is JSON already.
type rawPart []byte

// MarshalJSON returns the part unchanged.
func (r rawPart) MarshalJSON() ([]byte, error) { return r, nil }

// markers lists the texts that free text must not contain. A closing reasoning marker
// without an opening one is allowed, since some models leave the opening marker out.
func (w *writer) markers(s *spelling) []string {
	var out []string
	list := append([]string{s.open, w.think.open}, s.known...)
	if s.notFirst != "" { // followed by it, the text would begin a call
		list = append(list, w.think.end)
	}
	for _, m := range list {
		if m = strings.Trim(m, white); m != "" {
			out = append(out, m)
		}
	}
	return out
}

// reasoning builds the part before the answer, or returns nil if the format has none. The
// reasoning must not contain a marker of calls either, so that it can be read as content.
func (w *writer) reasoning(s *spelling) part {
	t := w.think
	if t.end == "" {
		return nil
	}
	not := []string{t.end}
	for _, m := range append([]string{s.open}, s.known...) {
		if m != "" {
			not = append(not, m)
		}
	}
	inside := row(anyBut(not...), w.mark(t.end))
	if w.opened() {
		return inside
	}
	return maybe(row(w.mark(t.open), inside))
}

// opened reports whether the prompt ends inside the reasoning, by the rule of New.
func (w *writer) opened() bool {
	return w.think.open != "" &&
		strings.HasSuffix(strings.TrimRight(w.o.Prompt, " \n"), strings.TrimRight(w.think.open, "\n"))
}
