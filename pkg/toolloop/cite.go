package toolloop

import (
	"sort"
	"strings"
	"unicode/utf8"
)

// Citation is a place of an answer that refers to a source.
type Citation struct {
	Start, End int // in characters (code points); End is excluded
	Source     Source
}

// Citations returns the places of an answer that refer to the loop's sources: numbers in brackets, such as [1], [1, 2]
// and 【1】, and addresses of sources. Code is not searched. They are in the order of the text.
func (l *Loop) Citations(answer string) []Citation {
	if len(l.sources) == 0 {
		return nil
	}
	var out []Citation
	code := codeSpans(answer)
	add := func(start, end int, s Source) {
		for _, c := range code {
			if start < c[1] && end > c[0] {
				return
			}
		}
		from := utf8.RuneCountInString(answer[:start])
		out = append(out, Citation{from, from + utf8.RuneCountInString(answer[start:end]), s})
	}
	for _, pair := range [][2]string{{"[", "]"}, {"【", "】"}} {
		for at := 0; ; {
			open := strings.Index(answer[at:], pair[0])
			if open < 0 {
				break
			}
			open += at
			at = open + len(pair[0])
			size := strings.Index(answer[at:], pair[1])
			if size < 0 {
				break
			}
			for _, n := range numbers(answer[at : at+size]) {
				if n <= len(l.sources) {
					add(open, at+size+len(pair[1]), l.sources[n-1])
				}
			}
		}
	}
	for _, s := range l.sources {
		for at := 0; s.URL != ""; {
			i := strings.Index(answer[at:], s.URL)
			if i < 0 {
				break
			}
			start, end := at+i, at+i+len(s.URL)
			if at = end; !goesOn(answer[end:]) {
				add(start, end, s)
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Start < out[j].Start })
	return out
}

// numbers reads "1", "1, 2" or "1†L3-L5". It returns nil for anything else.
func numbers(text string) (out []int) {
	text, _, _ = strings.Cut(text, "†")
	if len(text) > 32 {
		return nil
	}
	for _, part := range strings.Split(text, ",") {
		n := 0
		for _, c := range strings.TrimSpace(part) {
			if n = n*10 + int(c-'0'); c < '0' || c > '9' || n > 1e6 {
				return nil
			}
		}
		if n == 0 {
			return nil
		}
		out = append(out, n)
	}
	return out
}

// goesOn reports whether an address goes on with rest, so that it is another one.
func goesOn(rest string) bool {
	c, _ := utf8.DecodeRuneInString(strings.TrimLeft(rest, ".,;:!?"))
	return rest != "" && c != utf8.RuneError && strings.ContainsRune(
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/-_~%&=#+@$*", c)
}

// codeSpans returns the byte ranges of code in a text with Markdown: what is between equal runs of backticks. A run
// without an equal one starts no code.
func codeSpans(text string) (out [][2]int) {
	run := func(at int) int {
		n := 0
		for at+n < len(text) && text[at+n] == '`' {
			n++
		}
		return n
	}
	for at := 0; at < len(text); {
		open := strings.IndexByte(text[at:], '`')
		if open < 0 {
			break
		}
		start := at + open
		size := run(start)
		at = start + size
		for end := at; end < len(text); {
			next := strings.IndexByte(text[end:], '`')
			if next < 0 {
				break
			}
			end += next
			n := run(end)
			if end += n; n == size {
				out = append(out, [2]int{start, end})
				at = end
				break
			}
		}
	}
	return out
}
