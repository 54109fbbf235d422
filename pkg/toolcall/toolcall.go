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

// Empty says whether nothing was added.
func (d Delta) Empty() bool { return d.Content == "" && d.Reasoning == "" && len(d.Calls) == 0 }

// CallDelta is what was added to one call.
type CallDelta struct {
	Index     int    // of the call among the answer's, from 0
	ID        string // with the name only
	Name      string // in the call's first delta only
	Arguments string // a piece of a JSON object
}

// Options is what a Parser is given for one generation.
type Options struct {
	// Tools are OpenAI's tool definitions, a JSON array. Without any, calls are
	// looked for only where the format cannot write anything else. Formats without
	// a marker take only calls of these tools; formats without types take a
	// parameter's type from here.
	Tools []byte
	// Prompt is the rendered chat, or its end: where it opened the reasoning, the
	// text begins inside.
	Prompt string
	// ID names the call of an index, where the model gives no name. nil names
	// them call_0, call_1 and so on.
	ID func(index int) string
}

// Parser reads one generation.
type Parser struct {
	o     Options
	tools toolset
	marks []mark // what text may turn into, for the state text
	think thinking

	buf   string // not read yet
	final bool   // no more will come
	cut   bool   // the model was cut off
	state func(*Parser) bool
	start func(*Parser) bool // the state in which the answer begins
	out   Delta

	space   string // white space of the content, held back
	said    bool   // content was shown
	trim    bool   // white space before the next content goes
	mused   bool   // reasoning was shown
	musing  string // white space of the reasoning, held back
	calls   int    // named so far
	head    string // what of a call was read before its name was known
	named   bool   // the call being read has been shown
	json    jsonCall
	after   func(*Parser) bool // follows a call's arguments
	xml     xmlCall
	harmony message
}

// mark is a marker and what it leads to.
type mark struct {
	text string
	do   func(*Parser)
}

// New makes a parser for one generation.
func New(f Format, o Options) *Parser {
	p := &Parser{o: o, tools: readTools(o.Tools), state: text}
	p.think = reasonings(f.Reasoning)
	if fam, ok := families(f.Calls); ok && (len(p.tools) > 0 || fam.always) {
		fam.begin(p)
	}
	p.start = p.state
	if p.think.open != "" {
		p.marks = append(p.marks, mark{p.think.open, openReasoning})
		if strings.HasSuffix(strings.TrimRight(o.Prompt, " \n"), strings.TrimRight(p.think.open, "\n")) {
			p.state, p.trim = reasoning, true
		}
	}
	if p.think.end != "" {
		p.marks = append(p.marks, mark{p.think.end, closeReasoning})
	}
	for _, silent := range p.think.silent {
		p.marks = append(p.marks, mark{silent, func(p *Parser) { p.trim = true }})
	}
	return p
}

// Push takes more text, whole characters of it.
func (p *Parser) Push(text string) Delta {
	p.buf += text
	return p.run()
}

// Flush ends the text. cut says that the model was stopped before its end.
func (p *Parser) Flush(cut bool) Delta {
	p.final, p.cut = true, cut
	d := p.run()
	if p.calls == 0 && !p.trim {
		d.Content += p.space
	}
	p.space = ""
	return d
}

// Calls is the number of calls named so far.
func (p *Parser) Calls() int { return p.calls }

func (p *Parser) run() Delta {
	for p.state(p) {
	}
	d := p.out
	p.out = Delta{}
	return d
}

const white = " \t\r\n"

// say shows content; the white space at its end is held back.
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

// muse shows reasoning, without white space around it.
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

// find reads up to the first of the markers: the text before it, and which it is;
// -1 where none is whole yet, with the text that can be part of none.
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
		case wait && p.cut: // half a marker
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

// text is outside of everything.
func text(p *Parser) bool {
	before, i := p.find(len(p.marks), func(i int) string { return p.marks[i].text })
	p.say(before)
	if i < 0 {
		return false
	}
	p.marks[i].do(p)
	return true
}

// openReasoning begins the reasoning where nothing was said before it.
func openReasoning(p *Parser) {
	if p.said || p.calls > 0 {
		p.say(p.think.open)
		return
	}
	p.space, p.state = "", reasoning
}

// closeReasoning passes over an end of reasoning that nothing opened, as the prompts
// of some models have opened and closed it.
func closeReasoning(p *Parser) {
	if p.said || p.calls > 0 {
		p.say(p.think.end)
		return
	}
	p.space, p.trim, p.state = "", true, p.start
}

// reasoning reads up to the reasoning's end.
func reasoning(p *Parser) bool {
	before, i := p.findIn([]string{p.think.end})
	p.muse(before)
	if i < 0 {
		return false
	}
	p.musing, p.trim, p.state = "", true, p.start
	return true
}

// begin starts a call that head opened.
func (p *Parser) begin(head string) {
	p.head, p.named = head, false
}

// name shows a call.
func (p *Parser) name(name, id string) {
	if id == "" {
		if p.o.ID != nil {
			id = p.o.ID(p.calls)
		} else {
			id = "call_" + itoa(p.calls)
		}
	}
	p.space, p.trim = "", true
	p.out.Calls = append(p.out.Calls, CallDelta{Index: p.calls, ID: id, Name: name})
	p.calls++
	p.head, p.named = "", true
}

// argue adds to the last call's arguments.
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

// eat reads n bytes of a call's head.
func (p *Parser) eat(n int) string {
	s := p.buf[:n]
	p.buf = p.buf[n:]
	if !p.named {
		p.head += s
	}
	return s
}

// skipWhite reads white space and says whether something follows it.
func (p *Parser) skipWhite() bool {
	p.eat(len(p.buf) - len(strings.TrimLeft(p.buf, white)))
	return p.buf != ""
}

// fail ends a call that is none: what was read of it is content, unless its name
// was shown.
func (p *Parser) fail() bool {
	if !p.named && (!p.final || p.buf != "" || !p.cut) {
		head := p.head
		p.head = ""
		p.say(head)
	}
	p.head, p.state = "", text
	return true
}

// ended fails the call if nothing more will come; a state returns it where it
// needs more.
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

// done takes nothing more in.
func done(*Parser) bool { return false }

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}
