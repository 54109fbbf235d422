package tuning

import (
	"strings"

	"github.com/lamina-mesh/lamina/pkg/vocab"
)

// The colours of a sample: what is trained, its context, and padding.
const (
	colourTrained = "\x1b[32m"
	colourContext = "\x1b[2m"
	colourPadding = "\x1b[2;31m"
	colourEnd     = "\x1b[0m"
)

// Show returns a sample as text, followed by a number of rows of padding. With colour, trained text is green,
// context dim and padding red; without it, trained text stands between » and «, and padding is <pad>.
func Show(v *vocab.Vocab, s *Sample, padding int, colour bool) string {
	var b strings.Builder
	open := func(trained bool) {
		switch {
		case colour && trained:
			b.WriteString(colourTrained)
		case colour:
			b.WriteString(colourContext)
		case trained:
			b.WriteString("»")
		}
	}
	end := func(trained bool) {
		switch {
		case colour:
			b.WriteString(colourEnd)
		case trained:
			b.WriteString("«")
		}
	}
	for from := 0; from < len(s.IDs); {
		to, trained := from, s.Mask[from]
		for to < len(s.IDs) && s.Mask[to] == trained {
			to++
		}
		open(trained)
		for _, id := range s.IDs[from:to] {
			b.WriteString(visible(v, id))
		}
		end(trained)
		from = to
	}
	if padding > 0 {
		text := strings.Repeat("<pad>", min(padding, 3))
		if padding > 3 {
			text += "..."
		}
		if colour {
			text = colourPadding + text + colourEnd
		}
		b.WriteString(text)
	}
	return b.String()
}

// visible returns a token as it stands in a text. Control tokens are spelled, and no byte controls a terminal.
func visible(v *vocab.Vocab, id int32) string {
	text, kind, err := v.Token(id)
	if err != nil {
		return "<?>"
	}
	out := string(text)
	if kind == vocab.KindControl || kind == vocab.KindUnknown {
		out, _ = v.Spelling(id)
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(out, "\uFFFD"))
}
