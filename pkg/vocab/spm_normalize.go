package vocab

import (
	"strings"
	"unicode/utf8"
)

// spmNormalizer is SentencePiece's normalizer: the rules of a table, then the treatment
// of white space.
type spmNormalizer struct {
	rules   *charsmap
	own     *trie // user-defined tokens, which no rule changes; nil if there are none
	dummy   bool
	squeeze bool
	escape  bool
	suffix  bool
}

// prefix normalizes the beginning of s. width is how many bytes of s it covers.
func (n *spmNormalizer) prefix(s string) (text string, width int) {
	if n.own != nil {
		node, end := int32(0), 0
		for i := 0; i < len(s); i++ {
			if node = n.own.step(node, s[i]); node < 0 {
				break
			}
			if n.own.ids[node] >= 0 {
				end = i + 1
			}
		}
		if end > 0 {
			return s[:end], end
		}
	}
	if c := s[0]; c < utf8.RuneSelf && n.rules.plain[c] {
		return s[:1], 1
	}
	if text, width, ok := n.rules.find(s, true); ok {
		return text, width
	}
	_, width = utf8.DecodeRuneInString(s)
	return s[:width], width
}

func (n *spmNormalizer) apply(s string, _ bool, ed *edits) string {
	at := 0
	if n.squeeze {
		for at < len(s) {
			text, width := n.prefix(s[at:])
			if text != " " {
				break
			}
			at += width
		}
	}
	if at == len(s) {
		ed.add(0, at, false)
		return ""
	}
	space := " "
	if n.escape {
		space = wordMark
	}
	var b strings.Builder
	b.Grow(len(s) + len(s)/2)
	ed.add(0, at, false)
	if n.dummy && !n.suffix {
		b.WriteString(space)
		ed.add(len(space), 0, false)
	}
	wasSpace := n.squeeze
	for at < len(s) {
		text, width := n.prefix(s[at:])
		for wasSpace && strings.HasPrefix(text, " ") {
			text = text[1:]
		}
		if text != "" {
			wasSpace = n.squeeze && text[len(text)-1] == ' '
			if n.escape && strings.Contains(text, " ") {
				text = strings.ReplaceAll(text, " ", wordMark)
			}
			b.WriteString(text)
		} else if !n.squeeze {
			wasSpace = false
		}
		ed.add(len(text), width, len(text) == width && text == s[at:at+width])
		at += width
	}
	out := b.String()
	if n.squeeze {
		trimmed := out
		for strings.HasSuffix(trimmed, space) {
			trimmed = trimmed[:len(trimmed)-len(space)]
		}
		ed.drop(len(out) - len(trimmed))
		out = trimmed
	}
	if n.dummy && n.suffix {
		out += space
		ed.add(len(space), 0, false)
	}
	return out
}
