package toolcall

import (
	"strings"
)

// Delta is what a piece of text added.
type Delta struct {
	Content   string
	Reasoning string
	Calls     []CallDelta
}

// Empty reports whether nothing was added.
func (d Delta) Empty() bool { return d.Content == "" && d.Reasoning == "" && len(d.Calls) == 0 }

// CallDelta is what was added to one call.
type CallDelta struct {
	Index     int    // position of the call in the answer, from 0
	ID        string // set together with the name
	Name      string // set in the first delta of the call
	Arguments string // part of the arguments' JSON object
}

// Options configures a Parser for one generation.
type Options struct {
	// Tools is a JSON array of OpenAI tool definitions. Without tools, calls are parsed only
	// if the format always writes them. Formats without a marker accept only calls of these
	// tools; formats without types take the type of a parameter from here.
	Tools []byte
	// Prompt is the rendered chat or its end: if it has opened the reasoning, the text begins
	// inside the reasoning.
	Prompt string
	// NoPrompt says that the prompt is not at hand, so that nobody knows whether it opened the
	// reasoning. The parser then holds text back until it knows: a closing marker without an
	// opening one means that all before it was reasoning.
	NoPrompt bool
	// Strict drops a call that the model did not end itself. Otherwise the end of the text also
	// ends a call whose format has closing markers, if the model stopped by itself.
	Strict bool
	// ID returns the id of the call at an index, if the model gives none. nil means call_0,
	// call_1 and so on.
	ID func(index int) string
}

// Parser parses one generation.
type Parser struct {
	o      Options
	tools  toolset
	marks  []mark   // markers that the state text searches for
	inside []string // beginnings of calls that end the reasoning
	think  thinking

	buf   string // unread text
	final bool   // no more text will come
	cut   bool   // the model was stopped before its end
	state func(*Parser) bool
	start func(*Parser) bool // the state in which the answer begins
	out   Delta

	space   string // white space of the content, held back
	keep    bool   // white space next to calls is content
	said    bool   // content was reported
	trim    bool   // drop white space before the next content
	mused   bool   // reasoning was reported
	musing  string // white space of the reasoning, held back
	calls   int    // calls whose name was reported
	head    string // text of a call read before its name was known
	named   bool   // the current call was reported
	json    jsonCall
	after   func(*Parser) bool // the state after a call's arguments
	section bool               // inside a section of calls
	xml     xmlCall
	harmony message
}

// mark is a marker and the state that it leads to.
type mark struct {
	text string
	do   func(*Parser)
}

// New returns a parser for one generation.
func New(f Format, o Options) *Parser {
	p := &Parser{o: o, tools: readTools(o.Tools), state: text}
	p.think = reasonings(f.Reasoning)
	if fam, ok := families(f.Calls); ok && (len(p.tools) > 0 || fam.always) {
		fam.begin(p)
	}
	p.start = p.state
	for t := &p.think; t != nil; t = t.or {
		p.watch(*t)
	}
	if o.NoPrompt && p.think.end != "" {
		p.state = unknown
	}
	return p
}

// watch searches for the markers of a way to delimit reasoning.
func (p *Parser) watch(t thinking) {
	if t.open != "" {
		p.marks = append(p.marks, mark{t.open, func(p *Parser) { openReasoning(p, t) }})
		if strings.HasSuffix(strings.TrimRight(p.o.Prompt, " \n"), strings.TrimRight(t.open, "\n")) {
			p.state, p.trim, p.think = reasoning, true, t
		}
	}
	if t.end != "" {
		p.marks = append(p.marks, mark{t.end, func(p *Parser) { closeReasoning(p, t) }})
	}
	for _, silent := range t.silent {
		p.marks = append(p.marks, mark{silent, func(p *Parser) { p.trim = !p.keep }})
	}
}

// stopped reports whether the end of the text does not end a call.
func (p *Parser) stopped() bool { return p.cut || p.o.Strict }

// Push adds text, which must consist of whole characters.
func (p *Parser) Push(text string) Delta {
	p.buf += text
	return p.run()
}

// Flush ends the text. cut says that the model was stopped before its end.
func (p *Parser) Flush(cut bool) Delta {
	p.final, p.cut = true, cut
	d := p.run()
	if p.said && p.keep || p.calls == 0 && !p.trim {
		d.Content += p.space
	}
	p.space = ""
	return d
}

// Calls returns the number of calls reported so far.
func (p *Parser) Calls() int { return p.calls }

func (p *Parser) run() Delta {
	for p.state(p) {
	}
	d := p.out
	p.out = Delta{}
	return d
}

const white = " \t\r\n"

// say reports content; white space at its end is held back.
func (p *Parser) say(s string) {
	s = p.space + s
	t := strings.TrimRight(s, white)
	p.space = s[len(t):]
	if t == "" {
		return
	}
	if p.trim {
		t = strings.TrimLeft(t, white)
		p.trim = false
	}
	p.said = true
	p.out.Content += t
}

// muse reports reasoning, without surrounding white space.
func (p *Parser) muse(s string) {
	s = p.musing + s
	t := strings.TrimRight(s, white)
	p.musing = s[len(t):]
	if t == "" {
		return
	}
	if !p.mused {
		t = strings.TrimLeft(t, white)
		p.mused = true
	}
	p.out.Reasoning += t
}

// find reads up to the first complete marker and returns the text before it and the
// marker's index. Without one it returns -1 and the text that cannot be part of a marker.
func (p *Parser) find(n int, marker func(i int) string) (before string, which int) {
	for at := range len(p.buf) {
		rest := p.buf[at:]
		best, wait := -1, false
		for i := range n {
			m := marker(i)
			switch {
			case m == "" || m[0] != rest[0]:
			case strings.HasPrefix(rest, m):
				if best < 0 || len(m) > len(marker(best)) {
					best = i
				}
			case strings.HasPrefix(m, rest):
				wait = true
			}
		}
		switch {
		case wait && !p.final:
			before, p.buf = p.buf[:at], rest
			return before, -1
		case best >= 0:
			before, p.buf = p.buf[:at], rest[len(marker(best)):]
			return before, best
		case wait && p.cut: // an incomplete marker
			before, p.buf = p.buf[:at], ""
			return before, -1
		}
	}
	before, p.buf = p.buf, ""
	return before, -1
}

func (p *Parser) findIn(markers []string) (before string, which int) {
	return p.find(len(markers), func(i int) string { return markers[i] })
}

// text is the state outside reasoning and calls.
func text(p *Parser) bool {
	before, i := p.find(len(p.marks), func(i int) string { return p.marks[i].text })
	p.say(before)
	if i < 0 {
		return false
	}
	p.marks[i].do(p)
	return true
}

// openReasoning begins the reasoning if nothing was reported before it.
func openReasoning(p *Parser, t thinking) {
	if p.said || p.calls > 0 {
		p.say(t.open)
		return
	}
	p.space, p.state, p.think = "", reasoning, t
}

// closeReasoning skips a closing reasoning marker without an opening one; the prompts of
// some models have opened and closed the reasoning.
func closeReasoning(p *Parser, t thinking) {
	if p.said || p.calls > 0 {
		p.say(t.end)
		return
	}
	p.space, p.trim, p.state = "", true, p.start
}

// reasoning reads up to the end of the reasoning.
func reasoning(p *Parser) bool {
	ends := append([]string{p.think.end}, p.inside...)
	before, i := p.findIn(ends)
	p.muse(before)
	if i < 0 {
		return false
	}
	if i > 0 { // a call, which the answer's state reads
		p.buf = ends[i] + p.buf
	}
	p.musing, p.trim, p.state = "", true, p.start
	return true
}

// unknown is the first state where the prompt is not known: the first marker says whether the
// text before it was reasoning.
func unknown(p *Parser) bool {
	first, which := len(p.buf), -1
	for i, m := range p.marks {
		if at := strings.Index(p.buf, m.text); at >= 0 && at < first {
			first, which = at, i
		}
	}
	if which < 0 && !p.final {
		return false
	}
	p.state = p.start
	for t := &p.think; t != nil && which >= 0; t = t.or {
		if p.marks[which].text == t.end {
			p.muse(p.buf[:first])
			p.buf, p.musing, p.trim = p.buf[first+len(t.end):], "", true
			break
		}
	}
	return true
}

// begin starts a call after the opening text head.
func (p *Parser) begin(head string) {
	p.head, p.named = head, false
}

// name reports a call's name.
func (p *Parser) name(name, id string) {
	if id == "" {
		if p.o.ID != nil {
			id = p.o.ID(p.calls)
		} else {
			id = "call_" + itoa(p.calls)
		}
	}
	if !p.keep {
		p.space, p.trim = "", true
	}
	p.out.Calls = append(p.out.Calls, CallDelta{Index: p.calls, ID: id, Name: name})
	p.calls++
	p.head, p.named = "", true
}

// argue adds to the arguments of the last call.
func (p *Parser) argue(s string) {
	if s == "" {
		return
	}
	if n := len(p.out.Calls); n > 0 && p.out.Calls[n-1].Index == p.calls-1 {
		p.out.Calls[n-1].Arguments += s
		return
	}
	p.out.Calls = append(p.out.Calls, CallDelta{Index: p.calls - 1, Arguments: s})
}

// eat consumes n bytes of a call before its name is known.
func (p *Parser) eat(n int) string {
	s := p.buf[:n]
	p.buf = p.buf[n:]
	if !p.named {
		p.head += s
	}
	return s
}

// skipWhite skips white space and reports whether text follows.
func (p *Parser) skipWhite() bool {
	p.eat(len(p.buf) - len(strings.TrimLeft(p.buf, white)))
	return p.buf != ""
}

// fail ends an invalid call: the text read for it becomes content, unless its name was
// already reported.
func (p *Parser) fail() bool {
	if !p.named && (!p.final || p.buf != "" || !p.stopped()) {
		head := p.head
		p.head = ""
		p.say(head)
	}
	p.head, p.state = "", text
	return true
}

// ended fails the call if no more text will come. A state returns its result where it
// needs more text.
func (p *Parser) ended() bool {
	if !p.final || p.buf != "" {
		return false
	}
	if !p.named && p.head != "" {
		p.fail()
	}
	p.state = done
	return false
}

// done ignores all further text.
func done(*Parser) bool { return false }

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}
