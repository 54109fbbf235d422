package chat

import (
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
)

// style is a set of the attributes that a terminal gives to text. Colours are two of the terminal's own, which go with
// its background.
type style uint8

const (
	bold style = 1 << iota
	italic
	underline
	strike
	dim
	mono // code
)

// sequence returns the control sequence that sets exactly these attributes.
func (s style) sequence() string {
	out := "\x1b[0"
	for i, code := range []string{"1", "3", "4", "9", "2", "36"} {
		if s&(1<<i) != 0 {
			out += ";" + code
		}
	}
	return out + "m"
}

// wrapper writes words into lines. A word is written when it is known where it ends.
type wrapper struct {
	out   io.Writer
	width int  // in columns; 0 does not wrap
	plain bool // without styles
	err   error

	column int
	begun  bool // the line has something
	indent int  // of the lines behind a break
	set    style
	space  string // before the word
	word   []piece
	size   int // of the word, in bytes
}

// longest is how many bytes a word may have. A longer one is written in parts.
const longest = 4096

// piece is a part of a word in one style.
type piece struct {
	text string
	st   style
}

// add adds text to the line.
func (w *wrapper) add(s string, st style) {
	for _, r := range s {
		if r == ' ' || r == '\t' {
			if len(w.word) > 0 {
				w.flush()
			}
			w.space += map[rune]string{' ': " ", '\t': "    "}[r]
			continue
		}
		if len(w.word) > 0 && (w.size >= longest || w.breaks(r)) {
			w.flush()
		}
		w.size++
		if last := len(w.word) - 1; last >= 0 && w.word[last].st == st {
			w.word[last].text += string(r)
		} else {
			w.word = append(w.word, piece{string(r), st})
		}
	}
}

// notFirst are characters that no line begins with.
const notFirst = "、。，．・：；？！）」』】〉》”’…ー々"

// breaks reports whether a line may end between the word and a character: beside one of the scripts that are written
// without spaces, whose characters are two columns wide.
func (w *wrapper) breaks(r rune) bool {
	before, _ := utf8.DecodeLastRuneInString(w.word[len(w.word)-1].text)
	joined := before == '\u200d' || unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf, unicode.Sk)
	if joined || strings.ContainsRune(notFirst, r) {
		return false
	}
	return wide(before) || wide(r)
}

func wide(r rune) bool { return r >= 0x1100 && ansi.StringWidth(string(r)) == 2 }

// flush writes the word, on another line if this one has no room for it.
func (w *wrapper) flush() {
	columns := 0
	for _, p := range w.word {
		columns += ansi.StringWidth(p.text)
	}
	if w.width > 0 && w.begun && len(w.word) > 0 && w.column+len(w.space)+columns > w.width {
		w.style(0)
		w.write("\n" + strings.Repeat(" ", w.indent))
		w.column, w.space = w.indent, ""
	}
	if w.space != "" {
		if len(w.word) == 0 || w.set != w.word[0].st {
			w.style(0)
		}
		w.write(w.space)
		w.column += len(w.space)
		w.space = ""
	}
	for _, p := range w.word {
		w.style(p.st)
		w.write(p.text)
	}
	w.begun = w.begun || len(w.word) > 0
	w.column += columns
	w.word, w.size = w.word[:0], 0
}

// mark writes what stands for a marker at the beginning of a line. Lines behind a break begin below its end.
func (w *wrapper) mark(s string, st style) {
	w.style(st)
	w.write(s)
	w.column = ansi.StringWidth(strings.ReplaceAll(s, "\t", "    "))
	w.indent = min(w.column, w.width/2)
}

// raw writes text as it is, without breaks.
func (w *wrapper) raw(s string, st style) {
	if s == "" {
		return
	}
	w.style(st)
	w.write(s)
	w.begun = true
}

// newline ends the line.
func (w *wrapper) newline() {
	if len(w.word) > 0 { // spaces at the end are not written
		w.flush()
	}
	w.style(0)
	w.write("\n")
	w.column, w.indent, w.begun, w.space = 0, 0, false, ""
}

// end writes the rest, and ends the line if it has something.
func (w *wrapper) end() {
	if len(w.word) > 0 {
		w.flush()
	}
	if w.begun || w.column > 0 {
		w.newline()
	}
	w.style(0)
}

func (w *wrapper) style(st style) {
	if st != w.set && !w.plain {
		w.write(st.sequence())
	}
	w.set = st
}

func (w *wrapper) write(s string) {
	if w.err == nil {
		_, w.err = io.WriteString(w.out, s)
	}
}
