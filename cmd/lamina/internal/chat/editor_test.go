package chat

import (
	"errors"
	"io"
	"strings"
	"testing"

	tea "charm.land/bubbletea/v2"
)

// typed is an editing to which keys and pastes are sent.
type typed struct {
	t *testing.T
	m editing
}

func newTyped(t *testing.T, past ...string) *typed {
	x := &typed{t, newEditing(past)}
	x.send(tea.WindowSizeMsg{Width: 20, Height: 10})
	return x
}

func (x *typed) send(msgs ...tea.Msg) {
	for _, msg := range msgs {
		next, _ := x.m.Update(msg)
		m, ok := next.(editing)
		if !ok {
			x.t.Fatalf("%T in place of an editing", next)
		}
		x.m = m
	}
}

func (x *typed) text(s string) {
	for _, r := range s {
		x.send(tea.KeyPressMsg{Code: r, Text: string(r)})
	}
}

func (x *typed) key(code rune, mod tea.KeyMod) { x.send(tea.KeyPressMsg{Code: code, Mod: mod}) }

func (x *typed) want(value string) {
	x.t.Helper()
	if got := x.m.area.Value(); got != value {
		x.t.Errorf("the text is %q, want %q", got, value)
	}
}

func TestEditor_LinesPastesAndWideCharacters(t *testing.T) {
	x := newTyped(t)
	x.text("für 你好")
	x.key(tea.KeyEnter, tea.ModAlt)
	x.text("b")
	x.key('j', tea.ModCtrl)
	x.send(tea.PasteMsg{Content: "c\n/exit\nd"})
	x.want("für 你好\nb\nc\n/exit\nd")
	x.key(tea.KeyUp, 0)
	x.key(tea.KeyBackspace, 0)
	x.want("für 你好\nb\nc\nexit\nd")
	for i, line := range strings.Split(x.m.View().Content, "\n") {
		if prefix := map[bool]string{true: "> ", false: "  "}[i == 0]; !strings.HasPrefix(line, prefix) {
			t.Errorf("line %d is %q", i, line)
		}
	}
	x.key(tea.KeyEnter, 0)
	if !x.m.ended || x.m.err != nil {
		t.Errorf("Enter does not send: %v, %v", x.m.ended, x.m.err)
	}
	if view := x.m.View(); view.Cursor != nil || !strings.HasSuffix(view.Content, "  d\n") {
		t.Errorf("at the end the terminal shows %q", view.Content)
	}
}

func TestEditor_LongLinesAreBroken(t *testing.T) {
	x := newTyped(t)
	x.text("one two three four five six 你好你好你好你好")
	lines := strings.Split(strings.TrimRight(x.m.View().Content, "\n "), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[1], "  ") {
		t.Errorf("the view is %q", lines)
	}
	for range 100 { // more than the terminal has
		x.key('j', tea.ModCtrl)
	}
	if n := strings.Count(x.m.View().Content, "\n"); n > 9 {
		t.Errorf("%d lines on a terminal of ten", n+1)
	}
}

func TestEditor_History(t *testing.T) {
	x := newTyped(t, "first\nof two lines", "second")
	x.text("draft")
	x.key(tea.KeyUp, 0)
	x.want("second")
	x.key(tea.KeyUp, 0)
	x.want("first\nof two lines")
	x.key(tea.KeyUp, 0) // to its first line
	x.want("first\nof two lines")
	x.key(tea.KeyUp, 0) // there is none before
	x.want("first\nof two lines")
	x.key(tea.KeyDown, 0)
	x.key(tea.KeyDown, 0)
	x.want("second")
	x.key(tea.KeyDown, 0)
	x.want("draft")
	x.key(tea.KeyDown, 0)
	x.want("draft")
}

func TestEditor_Ends(t *testing.T) {
	x := newTyped(t)
	x.text("ab")
	x.key(tea.KeyLeft, 0)
	x.key('d', tea.ModCtrl) // deletes where there is something
	x.want("a")
	x.key(tea.KeyBackspace, 0)
	x.key('d', tea.ModCtrl)
	if !errors.Is(x.m.err, io.EOF) {
		t.Errorf("Ctrl-D without a text: %v", x.m.err)
	}
	x = newTyped(t)
	x.text("ab")
	x.key('c', tea.ModCtrl)
	if !errors.Is(x.m.err, ErrInterrupt) {
		t.Errorf("Ctrl-C: %v", x.m.err)
	}
}

func TestEditor_CompletesCommands(t *testing.T) {
	for text, want := range map[string]string{"/sy": "/system ", "/s": "/s", "sy": "sy", "/system x": "/system x"} {
		x := newTyped(t)
		x.text(text)
		x.key(tea.KeyTab, 0)
		x.want(want)
	}
}

// FuzzConversation reads files that /load is given.
func FuzzConversation(f *testing.F) {
	f.Add([]byte(`[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"}]`))
	f.Add([]byte(`[{"role":"tool","content":"s"}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, messages, err := parse(text)
		for _, m := range messages {
			if err != nil || m.GetRole() == "" {
				t.Fatalf("%v with %v", m, err)
			}
		}
	})
}

// FuzzHistory reads files of earlier questions.
func FuzzHistory(f *testing.F) {
	f.Add("\"a\"\n\"b\"\n")
	f.Add("x\n{}\n\"\"\n\"\\ud800\"")
	f.Fuzz(func(t *testing.T, text string) {
		h := &History{}
		if err := h.read(strings.NewReader(text)); err != nil && len(text) < maxQuestion {
			t.Fatal(err)
		}
		for _, s := range h.texts {
			if s == "" {
				t.Fatal("an empty text")
			}
		}
	})
}
