package chat

import (
	"context"
	"io"
	"strings"

	"charm.land/bubbles/v2/key"
	"charm.land/bubbles/v2/textarea"
	tea "charm.land/bubbletea/v2"
)

// maxRows bounds the lines of a question, broken ones included. Only some of them are shown at once.
const maxRows = 1 << 20

// Editor reads from a terminal, with several lines and a history. Bubble Tea draws the lines that are edited; what was
// sent stays on the terminal as text that was printed.
type Editor struct {
	In      io.Reader // the terminal
	Out     io.Writer
	History *History
}

// Read reads what the user writes until Enter.
func (e *Editor) Read(ctx context.Context) (string, error) {
	end, err := tea.NewProgram(newEditing(e.History.texts), tea.WithContext(ctx), tea.WithInput(e.In),
		tea.WithOutput(e.Out), tea.WithoutSignalHandler()).Run()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", err
	}
	m, ok := end.(editing)
	if !ok || m.err != nil {
		return "", m.err
	}
	text := m.area.Value()
	return text, e.History.Add(strings.TrimSpace(text))
}

// editing is the state of a text that is edited.
type editing struct {
	area  textarea.Model
	past  []string // earlier texts, the latest last
	at    int      // which of them is shown; len(past) for the text that is written now
	draft string   // that text
	ended bool
	err   error
}

func newEditing(past []string) editing {
	a := textarea.New()
	a.SetVirtualCursor(false)
	a.SetStyles(textarea.Styles{})
	a.ShowLineNumbers = false
	a.EndOfBufferCharacter = ' '
	a.CharLimit, a.MaxContentHeight = 0, maxRows
	a.DynamicHeight, a.MinHeight, a.MaxHeight = true, 1, 20
	a.SetPromptFunc(2, func(p textarea.PromptInfo) string {
		if p.LineNumber == 0 {
			return "> "
		}
		return "  "
	})
	a.KeyMap.InsertNewline = key.NewBinding(key.WithKeys("alt+enter", "shift+enter", "ctrl+j"))
	a.Focus()
	return editing{area: a, past: past, at: len(past)}
}

// Init starts nothing: the cursor is that of the terminal.
func (m editing) Init() tea.Cmd { return nil }

// Update reacts to a key, a paste or another size of the terminal.
func (m editing) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.area.SetWidth(msg.Width)
		m.area.MaxHeight = max(1, msg.Height-1)
	case tea.KeyPressMsg:
		switch msg.String() {
		case "enter":
			return m.end(nil)
		case "ctrl+c":
			return m.end(ErrInterrupt)
		case "ctrl+d":
			if m.area.Value() == "" {
				return m.end(io.EOF)
			}
		case "ctrl+l":
			return m, tea.ClearScreen
		case "ctrl+z":
			return m, tea.Suspend
		case "up":
			if m.area.Line() == 0 && m.area.LineInfo().RowOffset == 0 {
				return m.show(m.at - 1), nil
			}
		case "down":
			if i := m.area.LineInfo(); m.area.Line() == m.area.LineCount()-1 && i.RowOffset == i.Height-1 {
				return m.show(m.at + 1), nil
			}
		case "tab":
			if whole, ok := complete(m.area.Value()); ok {
				m.area.SetValue(whole)
			}
			return m, nil
		}
	}
	var cmd tea.Cmd
	m.area, cmd = m.area.Update(msg)
	return m, cmd
}

func (m editing) end(err error) (tea.Model, tea.Cmd) {
	m.ended, m.err = true, err
	m.area.MoveToEnd()
	return m, tea.Quit
}

// show shows an earlier text, or the one that is written now.
func (m editing) show(at int) editing {
	if at < 0 || at > len(m.past) {
		return m
	}
	if m.at == len(m.past) {
		m.draft = m.area.Value()
	}
	text := m.draft
	if m.at = at; at < len(m.past) {
		text = m.past[at]
	}
	m.area.SetValue(text)
	return m
}

// complete returns the only command that begins with a text.
func complete(text string) (string, bool) {
	if !strings.HasPrefix(text, "/") {
		return "", false
	}
	var found []string
	for _, c := range Commands() {
		if strings.HasPrefix(c, text) {
			found = append(found, c)
		}
	}
	if len(found) != 1 {
		return "", false
	}
	return found[0] + " ", true
}

// View draws the text. At the end the cursor is on the line below.
func (m editing) View() tea.View {
	text := m.area.View()
	if m.ended {
		lines := strings.Split(text, "\n")
		for i, l := range lines {
			lines[i] = strings.TrimRight(l, " ")
		}
		return tea.NewView(strings.Join(lines, "\n") + "\n")
	}
	v := tea.NewView(text)
	v.Cursor = m.area.Cursor()
	return v
}
