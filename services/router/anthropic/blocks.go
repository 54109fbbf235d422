package anthropic

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"

	"github.com/lamina-mesh/lamina/pkg/toolcall"
)

// block is a content block of an answer.
type block struct {
	Type      string          `json:"type"`
	Text      *string         `json:"text,omitempty"`
	Thinking  *string         `json:"thinking,omitempty"`
	Signature *string         `json:"signature,omitempty"`
	ID        string          `json:"id,omitempty"`
	Name      string          `json:"name,omitempty"`
	Input     json.RawMessage `json:"input,omitempty"`
	Citations []any           `json:"citations,omitempty"`

	// Of tools that the server has run.
	Server    string `json:"server_name,omitempty"`
	ToolUseID string `json:"tool_use_id,omitempty"`
	Content   any    `json:"content,omitempty"`
	IsError   *bool  `json:"is_error,omitempty"`
}

// The types of blocks.
const (
	textBlock     = "text"
	thinkingBlock = "thinking"
	toolBlock     = "tool_use"
	serverBlock   = "server_tool_use" // a call that the server has run
	mcpBlock      = "mcp_tool_use"    // the same, of an MCP server
)

// event is one event of a stream.
type event struct {
	Type    string   `json:"type"`
	Message *message `json:"message,omitempty"`
	Index   *int     `json:"index,omitempty"`
	Block   *block   `json:"content_block,omitempty"`
	Delta   any      `json:"delta,omitempty"`
	Usage   *usage   `json:"usage,omitempty"`
}

func (e event) name() string { return e.Type }

// delta is a part of a block.
type delta struct {
	Type      string  `json:"type"`
	Text      *string `json:"text,omitempty"`
	Thinking  *string `json:"thinking,omitempty"`
	Signature *string `json:"signature,omitempty"`
	JSON      *string `json:"partial_json,omitempty"`
	Citation  any     `json:"citation,omitempty"`
}

// messageEnd is the delta of message_delta.
type messageEnd struct {
	StopReason   string  `json:"stop_reason"`
	StopSequence *string `json:"stop_sequence"`
}

// assembler turns what was added to an answer into content blocks. A block ends when another one begins, so
// the blocks are in the order in which the model wrote them. The whole response has the same blocks as the
// stream, since both come from here.
type assembler struct {
	thinking bool // reasoning is part of the answer
	blocks   []part
	open     bool // the last block has begun and not ended
	call     int  // index of the call in the last block
}

// part is a block that grows.
type part struct {
	kind     string
	id, name string
	text     []byte

	server    string // of a call of an MCP server
	citations []any
	whole     *block // a block that does not grow
}

// push adds a delta and returns the events that say so.
func (a *assembler) push(d toolcall.Delta) (out []event) {
	if d.Reasoning != "" && a.thinking {
		out = append(out, a.enter(thinkingBlock)...)
		out = append(out, a.grow(delta{Type: "thinking_delta", Thinking: &d.Reasoning}, d.Reasoning))
	}
	if d.Content != "" {
		out = append(out, a.enter(textBlock)...)
		out = append(out, a.grow(delta{Type: "text_delta", Text: &d.Content}, d.Content))
	}
	for _, c := range d.Calls {
		if c.Name != "" {
			out = append(out, a.end()...)
			out = append(out, a.begin(part{kind: toolBlock, id: toolID(c.ID), name: c.Name}))
			a.call = c.Index
		}
		if c.Arguments != "" && a.open && a.call == c.Index {
			out = append(out, a.grow(delta{Type: "input_json_delta", JSON: &c.Arguments}, c.Arguments))
		}
	}
	return out
}

// toolID returns the id of a call in the form of Anthropic's.
func toolID(id string) string { return "toolu_" + id }

// enter begins a block of the given type unless one is open.
func (a *assembler) enter(kind string) []event {
	if a.open && a.last().kind == kind {
		return nil
	}
	return append(a.end(), a.begin(part{kind: kind}))
}

func (a *assembler) last() *part { return &a.blocks[len(a.blocks)-1] }

func (a *assembler) index() *int {
	i := len(a.blocks) - 1
	return &i
}

func (a *assembler) begin(p part) event {
	a.blocks, a.open = append(a.blocks, p), true
	b := p.block()
	if p.kind == thinkingBlock {
		b.Signature = new(string)
	}
	return event{Type: "content_block_start", Index: a.index(), Block: &b}
}

func (a *assembler) grow(d delta, text string) event {
	a.last().text = append(a.last().text, text...)
	return event{Type: "content_block_delta", Index: a.index(), Delta: d}
}

// end ends the last block.
func (a *assembler) end() (out []event) {
	if !a.open {
		return nil
	}
	a.open = false
	if a.last().kind == thinkingBlock {
		out = append(out, event{Type: "content_block_delta", Index: a.index(),
			Delta: delta{Type: "signature_delta", Signature: signature(a.last().text)}})
	}
	return append(out, event{Type: "content_block_stop", Index: a.index()})
}

// signature returns the signature of a thinking block. Clients send it back and do not look into it.
func signature(text []byte) *string {
	sum := sha256.Sum256(text)
	out := base64.StdEncoding.EncodeToString(sum[:])
	return &out
}

// block returns the block as it is now. The input of a call that was cut off is an empty object.
func (p *part) block() block {
	if p.whole != nil {
		return *p.whole
	}
	b, text := block{Type: p.kind}, string(p.text)
	switch p.kind {
	case textBlock:
		b.Text, b.Citations = &text, p.citations
	case thinkingBlock:
		b.Thinking, b.Signature = &text, signature(p.text)
	case toolBlock, serverBlock, mcpBlock:
		b.ID, b.Name, b.Server, b.Input = p.id, p.name, p.server, json.RawMessage("{}")
		if json.Valid(p.text) {
			b.Input = p.text
		}
	}
	return b
}

// content returns all blocks.
func (a *assembler) content() []block {
	out := make([]block, len(a.blocks))
	for i := range a.blocks {
		out[i] = a.blocks[i].block()
	}
	return out
}
