package toolcall

import "strings"

// message is the state of a message in the harmony format: a header with channel,
// recipient and type up to <|message|>, and a body.
type message struct {
	role    string // the header read so far
	channel string
	tool    bool
	thought bool // a reasoning message came before
}

func harmony(p *Parser) {
	p.state = harmonyHeader
	tail := p.o.Prompt
	if i := strings.LastIndex(tail, "<|start|>assistant"); i >= 0 {
		tail = tail[i+len("<|start|>assistant"):]
		header, body, ok := strings.Cut(tail, "<|message|>")
		if ok && !strings.Contains(body, "<|end|>") {
			p.openMessage(header)
		} else if !ok {
			p.harmony.role = tail
		}
	}
}

func harmonyMarks() []string {
	return []string{"<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>"}
}

// harmonyHeader reads the header up to <|message|>.
func harmonyHeader(p *Parser) bool {
	before, i := p.findIn(harmonyMarks())
	p.harmony.role += before
	switch i {
	case 0:
		header := p.harmony.role
		p.harmony.role = ""
		p.openMessage(header)
	case -1:
		if p.final { // the model wrote no header
			header := p.harmony.role
			if !strings.Contains(header, "<|channel|>") && !p.cut {
				p.say(header)
			}
			p.harmony.role, p.state = "", done
		}
		return false
	default:
		if !strings.Contains(p.harmony.role, "<|") { // text between messages
			p.say(strings.TrimPrefix(p.harmony.role, "assistant"))
		}
		p.harmony.role = ""
	}
	return true
}

// openMessage interprets a header.
func (p *Parser) openMessage(header string) {
	m := &p.harmony
	m.tool, m.channel = false, "final"
	if _, after, ok := strings.Cut(header, "<|channel|>"); ok {
		m.channel, _, _ = strings.Cut(strings.TrimLeft(after, white), "<")
		m.channel, _, _ = strings.Cut(m.channel, " ")
		m.channel = strings.TrimSpace(m.channel)
	}
	if _, after, ok := strings.Cut(header, "to="); ok {
		to := after
		if i := strings.IndexAny(to, white+"<"); i >= 0 {
			to = to[:i]
		}
		if to = strings.TrimPrefix(to, "functions."); isName(to) {
			p.name(to, "")
			m.tool = true
		}
	}
	if m.channel == "analysis" && !m.tool && m.thought {
		p.musing = "\n"
	}
	p.state = harmonyBody
	if m.tool {
		p.state = harmonyArguments
	}
}

// harmonyArguments reads the JSON object of a call, in which a marker is ordinary text.
func harmonyArguments(p *Parser) bool {
	text := strings.TrimLeft(p.buf, white)
	switch {
	case text == "" && !p.final:
		return false
	case strings.HasPrefix(text, "{"):
		p.argue(p.buf[:len(p.buf)-len(text)])
		p.buf = text
		p.object(harmonyBody)
	default:
		p.state = harmonyBody
	}
	return true
}

// harmonyBody reads the body up to the end of the message.
func harmonyBody(p *Parser) bool {
	m := &p.harmony
	before, i := p.findIn(harmonyMarks()[1:])
	switch {
	case m.tool:
		p.argue(p.musing + before)
		p.musing = ""
	case m.channel == "analysis":
		p.muse(before)
		m.thought = true
	default:
		p.say(before)
	}
	if i < 0 {
		return false
	}
	if m.tool = false; m.channel == "analysis" {
		p.musing = ""
		p.trim = true
	}
	p.state = harmonyHeader
	return true
}
