package chat_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/chat"
)

// shown returns what a Markdown writes for a text that arrives in pieces.
func shown(width int, plain bool, pieces ...string) string {
	var out strings.Builder
	m := chat.NewMarkdown(&out, width, plain)
	for _, p := range pieces {
		m.Write(p)
	}
	if err := m.Close(); err != nil {
		return err.Error()
	}
	return out.String()
}

// tags writes the control sequences of a terminal as tags.
func tags(s string) string {
	s = regexp.MustCompile("\x1b\\[0((;[0-9]+)*)m").ReplaceAllString(s, "<${1}>")
	for code, name := range map[string]string{
		"1": "bold", "2": "dim", "3": "italic", "4": "under", "9": "strike", "36": "code",
	} {
		s = regexp.MustCompile(`([<;+])`+code+`([;>])`).ReplaceAllString(s, "${1}"+name+"${2}")
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "<;", "<"), "<>", "</>")
}

func TestMarkdown_Styles(t *testing.T) {
	for _, row := range [][2]string{
		{"a **b c** d", "a <bold>b c</> d"},
		{"*a* and _b_", "<italic>a</> and <italic>b</>"},
		{"***x***", "<bold;italic>x</>"},
		{"`a  b` c", "<code>a  b</> c"},
		{"``a ` b``", "<code>a ` b</>"},
		{"**a `b` c**", "<bold>a</> <bold;code>b</> <bold>c</>"},
		{"snake_case_name and 2 * 3 * 4", "snake_case_name and 2 * 3 * 4"},
		{"*args, **kwargs", "*args, **kwargs"},
		{"\\*no\\*", "*no*"},
		{"~~gone~~", "<strike>gone</>"},
		{"# Title **x**", "<bold>Title x</>"},
		{"#no", "#no"},
		{"- one\n- two", "• one\n• two"},
		{"  * one", "  • one"},
		{"12. one", "12. one"},
		{"1.5 is", "1.5 is"},
		{"> said", "<dim>│ said</>"},
		{"---", "<dim>────────────────────</>"},
		{"**bold** line", "<bold>bold</> line"},
		{"```go\na  **b**\n\n```\nc", "<dim>```go</>\n<code>a  **b**</>\n\n<dim>```</>\nc"},
		{"~~~\n```\n~~~\n*c*", "<dim>~~~</>\n<code>```</>\n<dim>~~~</>\n<italic>c</>"},
		{"| a | **b** |", "| a | **b** |"},
		{"[text](http://x) y", "<under>text</> <dim>(http://x)</> y"},
		{"[1] and [x](y z)", "[1] and [x](y z)"},
		{"a\x1b[2Jb\r\u009bc\u007f", "a[2Jbc"},
		{"", ""},
		{"\n\na", "\n\na"},
	} {
		got := strings.TrimSuffix(tags(shown(0, false, row[0])), "\n")
		if got != row[1] && got != strings.TrimSuffix(row[1], "\n") {
			t.Errorf("%q is shown as %q, want %q", row[0], got, row[1])
		}
	}
}

func TestMarkdown_WrapsBetweenWords(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"one two three", "one two\nthree\n"},
		{"- one two three", "• one two\n  three\n"},
		{"incomprehensible word", "incomprehensible\nword\n"},
		{"你好世界你好世界", "你好世界\n你好世界\n"},
		{"你好世，界", "你好世，\n界\n"},
		{"ab 👩‍👩‍👧 cde", "ab 👩‍👩‍👧 cde\n"},
		{"e\u0301e\u0301e\u0301 abcd x", "e\u0301e\u0301e\u0301 abcd\nx\n"},
		{"one   two     three", "one   two\nthree\n"},
	} {
		if got := ansi.Strip(shown(9, false, row.text)); got != row.want {
			t.Errorf("%q in 9 columns is %q, want %q", row.text, got, row.want)
		}
	}
	if got := shown(9, true, "a **b** cdef"); got != "a **b**\ncdef\n" {
		t.Errorf("without styles: %q", got)
	}
}

// samples have all that a Markdown treats in its own way.
func samples() []string {
	return []string{
		"# A title\n\nSome *emphasis*, **strong _and_ more** and `code`.\n\n1. one\n2. two\n   - three **four\n\n```py\nx = '**'\n  ``\n```\nend",
		"> quote\n\n---\n- - -\n***\n* * *x\n|a|b|\n|-|-|\n", "[a](b) [c] [d](e f) [g [h](i)", "你好，世界**粗体**文字 é ö 👩‍👩‍👧🇩🇪",
		"*" + strings.Repeat("a ", 300) + "* b", strings.Repeat("`", 500), strings.Repeat("**a", 200), "a\\", "\\*\\", "~~~~\n~~~\n~~~~~ \nx",
		"12345678901. x", "1", "1.", "1. ", "-", "- ", "#######", "####### x", ">", "``", "`` ` ``", "_a_b _c_", "***a** b*",
		strings.Repeat("- ", 300), "\xff\xfe a \xe4\xbd", "  \t\n  indented\n", "a  \nb",
	}
}

// TestMarkdown_HoweverTheTextIsCut is the property of streams: pieces give what the whole gives.
func TestMarkdown_HoweverTheTextIsCut(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, text := range samples() {
		want := shown(20, false, text)
		for range 20 {
			if got := shown(20, false, cut(rnd, text)...); got != want {
				t.Fatalf("%q is shown as\n%q, and in pieces as\n%q", text, want, got)
			}
		}
	}
}

func cut(rnd *rand.Rand, text string) (pieces []string) {
	for text != "" {
		n := 1 + rnd.IntN(min(len(text), 1+rnd.IntN(12)))
		pieces, text = append(pieces, text[:n]), text[n:]
	}
	return pieces
}

// visible leaves the letters and digits of a text, which no rendering may lose or move.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return -1
	}, s)
}

func FuzzMarkdown(f *testing.F) {
	for _, text := range samples() {
		f.Add(text, uint64(1), uint8(20))
	}
	f.Fuzz(func(t *testing.T, text string, seed uint64, width uint8) {
		if len(text) > 4096 {
			return
		}
		whole := shown(int(width), false, text)
		if got := shown(int(width), false, cut(rand.New(rand.NewPCG(seed, 1)), text)...); got != whole {
			t.Fatalf("in pieces %q, whole %q", got, whole)
		}
		plain := ansi.Strip(whole)
		if strings.ContainsFunc(plain, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }) {
			t.Fatalf("control characters in %q", plain)
		}
		if utf8.ValidString(text) && visible(plain) != visible(text) {
			t.Fatalf("%q has other letters than %q", plain, text)
		}
	})
}

func ExampleMarkdown() {
	fmt.Print(shown(40, true, "A terminal ", "without styles shows **markers** as they are."))
	// Output:
	// A terminal without styles shows
	// **markers** as they are.
}
