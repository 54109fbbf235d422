package mask

import (
	"fmt"
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/grammar/ast"
	"github.com/lamina-mesh/lamina/pkg/grammar/automaton"
)

// Compiled is a grammar ready for matching, with the masks computed so far. Goroutines share
// it through Matchers of their own.
type Compiled struct {
	m     *engine
	vocab *Vocabulary
	start *automaton.Position
}

// Compile makes g ready for matching and for masks over v, which may be nil.
func Compile(g *ast.Grammar, v *Vocabulary) (*Compiled, error) { return compile(g, v, seldom) }

// compile is Compile with another value of seldom.
func compile(g *ast.Grammar, v *Vocabulary, seldom int) (*Compiled, error) {
	prog, err := automaton.Compile(g)
	if err != nil {
		return nil, err
	}
	m := newEngine(prog, v, seldom)
	start, err := m.At(m.Start(int32(g.Root)), m.Stacks.Bottom, nil)
	if err != nil {
		return nil, err
	}
	if v != nil {
		m.prepare(start)
	}
	return &Compiled{m: m, vocab: v, start: start}, nil
}

// Matcher follows one text through a grammar. It belongs to one goroutine at a
// time.
type Matcher struct {
	c    *Compiled
	past []step // past[0] is the beginning
	text []byte // accepted so far, if the grammar has uniqueItems
}

// step is the position after one Accept or AcceptBytes.
type step struct {
	*automaton.Position
	ended bool // an end token was accepted
	text  int  // length of text
}

// NewMatcher starts a text.
func (c *Compiled) NewMatcher() *Matcher {
	return &Matcher{c: c, past: []step{{Position: c.start}}}
}

// Clone returns an independent matcher in the same state, with the same history.
func (m *Matcher) Clone() *Matcher {
	return &Matcher{c: m.c, past: slices.Clone(m.past), text: slices.Clone(m.text)}
}

func (m *Matcher) now() *step { return &m.past[len(m.past)-1] }

// Reset returns to the beginning of the text.
func (m *Matcher) Reset() { m.past, m.text = m.past[:1], m.text[:0] }

// CanEnd reports whether the text so far is complete.
func (m *Matcher) CanEnd() bool { return m.now().CanEnd }

// Done reports whether an end token was accepted, or is all that can follow.
func (m *Matcher) Done() bool {
	now := m.now()
	return now.ended || now.CanEnd && len(now.Configs) == 0
}

// Steps returns the number of calls of Accept and AcceptBytes that Rollback can undo.
func (m *Matcher) Steps() int { return len(m.past) - 1 }

// Rollback undoes the last n successful calls of Accept and AcceptBytes.
func (m *Matcher) Rollback(n int) error {
	if n < 0 || n > m.Steps() {
		return fault.New(fault.Invalid, "roll back %d steps: only %d were made", n, m.Steps())
	}
	m.past = m.past[:len(m.past)-n]
	m.text = m.text[:m.now().text]
	return nil
}

// AcceptBytes advances by text, as one step. If a byte does not fit it returns a *RejectError
// and changes nothing.
func (m *Matcher) AcceptBytes(text []byte) error { return m.accept(-1, text) }

// Accept advances by a token, as one step: by its bytes, or by the end for an end token. If
// it does not fit it returns a *RejectError and changes nothing.
func (m *Matcher) Accept(id int32) error {
	v := m.c.vocab
	if v == nil || id < 0 || int(id) >= v.Size() {
		return fault.New(fault.Invalid, "accept token %d: not in the vocabulary", id)
	}
	if v.ends(id) {
		if now := m.now(); now.CanEnd {
			m.past = append(m.past, step{now.Position, true, now.text})
			return nil
		}
		return &ast.RejectError{Token: id}
	}
	if len(v.tokens[id]) == 0 {
		return &ast.RejectError{Token: id}
	}
	return m.accept(id, v.tokens[id])
}

func (m *Matcher) accept(id int32, text []byte) error {
	now := m.now()
	if now.ended && len(text) > 0 {
		return &ast.RejectError{Token: id}
	}
	mach := m.c.m
	mach.Mu.Lock()
	defer mach.Mu.Unlock()
	mach.Credit += automaton.TokenWork
	mach.refresh()
	mach.LoadText(m.text)
	at := now.Position
	for i, b := range text {
		next, err := mach.Follow(at, b)
		if err != nil {
			return err
		}
		if next == mach.Nowhere {
			return &ast.RejectError{Token: id, Offset: i}
		}
		at = next
		mach.PushByte(b)
	}
	if mach.Prog.Unique {
		m.text = append(m.text, text...)
	}
	m.past = append(m.past, step{Position: at, text: len(m.text)})
	return nil
}

// maxForced bounds what Forced returns.
const maxForced = 4096

// Forced returns the bytes that must follow, up to the first choice, up to a place where the
// text may end, or up to 4096 bytes. The matcher does not move.
func (m *Matcher) Forced() []byte {
	mach := m.c.m
	mach.Mu.Lock()
	defer mach.Mu.Unlock()
	mach.refresh()
	mach.LoadText(m.text)
	if m.now().ended {
		return nil
	}
	var out []byte
	for at := m.now().Position; !at.CanEnd && len(out) < maxForced; {
		b, ok := mach.OnlyByte(at)
		if !ok {
			break
		}
		next, err := mach.Follow(at, b)
		if err != nil {
			break
		}
		if next == mach.Nowhere {
			break
		}
		mach.PushByte(b)
		out = append(out, b)
		at = next
	}
	return out
}

// Bytes returns the bytes that can follow, in ascending order.
func (m *Matcher) Bytes() []byte {
	now := m.now()
	if now.ended {
		return nil
	}
	mach := m.c.m
	mach.Mu.Lock()
	defer mach.Mu.Unlock()
	mach.refresh()
	mach.LoadText(m.text)
	var out []byte
	for b := range mach.Allowed(now.Position).All() {
		if next, err := mach.Follow(now.Position, b); err == nil && next != mach.Nowhere {
			out = append(out, b)
		}
	}
	return out
}

// String describes the matcher for logs.
func (m *Matcher) String() string {
	return fmt.Sprintf("matcher after %d steps in %d configs, can end: %t", m.Steps(), len(m.now().Configs), m.CanEnd())
}
