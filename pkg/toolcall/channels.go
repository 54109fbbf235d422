package toolcall

import "strings"

// harmony builds a sequence of reasoning messages, followed by the answer or calls.
func (w *writer) harmony() (part, error) {
	body := anyBut(harmonyMarks()...)
	next := w.mark("<|end|><|start|>assistant")
	message := func(channel string, body part) part { return row(w.mark("<|channel|>"+channel+"<|message|>"), body) }
	var all []part
	for _, t := range w.tools {
		kind := either(row(pattern(" ?"), w.mark("<|constrain|>json")), constant(" json"), pattern(" ?"))
		to := constant(" to=functions." + t.name)
		header := either(row(w.mark("<|channel|>commentary"), to, kind), row(to, w.mark("<|channel|>commentary"), kind))
		all = append(all, row(header, w.mark("<|message|>"), schema(t.schema)))
	}
	call, end := either(all...), w.mark("<|call|>")
	calls := row(call, maybe(end))
	if !w.o.Single {
		calls = row(call, many(row(end, w.mark("<|start|>assistant"), call)), maybe(end))
	}
	out := row(maybe(row(message("analysis", body), next)), calls)
	if !w.o.Required {
		final := body
		if w.o.Content != nil {
			final = w.content()
		}
		out = row(many(row(either(message("analysis", body), message("commentary", body)), next)),
			either(calls, message("final", final)))
	}
	_, tail, found := cutLast(w.o.Prompt, "<|start|>assistant")
	header, within, begun := strings.Cut(tail, "<|message|>")
	switch {
	case !found || tail == "":
		return out, nil
	case begun && !strings.Contains(within, "<|end|>") && strings.Contains(header, "final"):
		return body, nil
	case begun && !strings.Contains(within, "<|end|>"):
		return row(body, next, out), nil
	}
	return out, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
