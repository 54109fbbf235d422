package template

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// specialUpper lists the characters whose upper case has more than one character; each is
// followed by its upper case, separated by spaces.
const specialUpper = "ß SS ŉ ʼN ǰ J̌ ΐ Ϊ́ ΰ Ϋ́ և ԵՒ ẖ H̱ ẗ T̈ ẘ W̊ ẙ Y̊ ẚ Aʾ ὐ Υ̓ ὒ Υ̓̀ ὔ Υ̓́ ὖ Υ̓͂ ᾀ ἈΙ ᾁ ἉΙ ᾂ ἊΙ " +
	"ᾃ ἋΙ ᾄ ἌΙ ᾅ ἍΙ ᾆ ἎΙ ᾇ ἏΙ " +
	"ᾈ ἈΙ ᾉ ἉΙ ᾊ ἊΙ ᾋ ἋΙ ᾌ ἌΙ ᾍ ἍΙ ᾎ ἎΙ ᾏ ἏΙ ᾐ ἨΙ ᾑ ἩΙ ᾒ ἪΙ ᾓ ἫΙ ᾔ ἬΙ ᾕ ἭΙ ᾖ ἮΙ ᾗ ἯΙ ᾘ ἨΙ ᾙ ἩΙ ᾚ ἪΙ ᾛ ἫΙ ᾜ ἬΙ ᾝ ἭΙ " +
	"ᾞ ἮΙ ᾟ ἯΙ " +
	"ᾠ ὨΙ ᾡ ὩΙ ᾢ ὪΙ ᾣ ὫΙ ᾤ ὬΙ ᾥ ὭΙ ᾦ ὮΙ ᾧ ὯΙ ᾨ ὨΙ ᾩ ὩΙ ᾪ ὪΙ ᾫ ὫΙ ᾬ ὬΙ ᾭ ὭΙ ᾮ ὮΙ ᾯ ὯΙ ᾲ ᾺΙ ᾳ ΑΙ ᾴ ΆΙ ᾶ Α͂ ᾷ Α͂Ι ᾼ " +
	"ΑΙ ῂ ῊΙ ῃ ΗΙ ῄ ΉΙ " +
	"ῆ Η͂ ῇ Η͂Ι ῌ ΗΙ ῒ Ϊ̀ ΐ Ϊ́ ῖ Ι͂ ῗ Ϊ͂ ῢ Ϋ̀ ΰ Ϋ́ ῤ Ρ̓ ῦ Υ͂ ῧ Ϋ͂ ῲ ῺΙ ῳ ΩΙ ῴ ΏΙ ῶ Ω͂ ῷ Ω͂Ι ῼ ΩΙ ﬀ FF ﬁ FI ﬂ FL ﬃ " +
	"FFI ﬄ FFL ﬅ ST ﬆ ST ﬓ ՄՆ ﬔ ՄԵ " +
	"ﬕ ՄԻ ﬖ ՎՆ ﬗ ՄԽ "

// expands returns the upper case of a character if it has more than one character.
func expands(r rune) (string, bool) {
	switch {
	case r < 0xdf, r > 0xdf && r < 0x149, r > 0x149 && r < 0x1f0, r > 0x587 && r < 0x1e96,
		r > 0x1ffc && r < 0xfb00, r > 0xfb17:
		return "", false
	}
	key := string(r) + " "
	i := strings.Index(specialUpper, key)
	if i < 0 || i > 0 && specialUpper[i-1] != ' ' {
		return "", false
	}
	rest := specialUpper[i+len(key):]
	return rest[:strings.IndexByte(rest, ' ')], true
}

// upper, lower, fold and capitalize behave as in Python, with Unicode's full case mappings.
func upper(x string) string {
	return mapped(x, func(b *strings.Builder, r rune) {
		if more, ok := expands(r); ok {
			b.WriteString(more)
		} else {
			b.WriteRune(unicode.ToUpper(r))
		}
	})
}

func lower(x string) string {
	if !strings.ContainsAny(x, "Σİ") {
		return strings.ToLower(x)
	}
	var b strings.Builder
	for i, r := range x {
		lowerAt(&b, x, i, r)
	}
	return b.String()
}

// lowerAt appends the lower case of the character at i.
func lowerAt(b *strings.Builder, x string, i int, r rune) {
	switch r {
	case 'İ':
		b.WriteString("i̇")
	case 'Σ':
		if endsWord(x[:i], x[i+len("Σ"):]) {
			b.WriteRune('ς')
		} else {
			b.WriteRune('σ')
		}
	default:
		b.WriteRune(unicode.ToLower(r))
	}
}

// endsWord reports whether a sigma between the two texts is a final sigma.
func endsWord(before, after string) bool {
	before = strings.TrimRightFunc(before, passedOver)
	after = strings.TrimLeftFunc(after, passedOver)
	last, _ := utf8.DecodeLastRuneInString(before)
	next, _ := utf8.DecodeRuneInString(after)
	return cased(last) && !cased(next)
}

// passedOver reports whether a character is ignored in the search for the end of a word.
func passedOver(r rune) bool {
	return strings.ContainsRune("'.:·’^`¨", r) ||
		unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf, unicode.Lm, unicode.Sk)
}

func cased(r rune) bool {
	return unicode.IsUpper(r) || unicode.IsLower(r) || unicode.IsTitle(r) ||
		unicode.In(r, unicode.Other_Lowercase, unicode.Other_Uppercase)
}

func fold(x string) string {
	return mapped(x, func(b *strings.Builder, r rune) {
		if more, ok := expands(r); ok {
			b.WriteString(strings.ToLower(more))
		} else if r == 'İ' {
			b.WriteString("i̇")
		} else if r == 'ı' {
			b.WriteRune(r)
		} else {
			b.WriteRune(unicode.ToLower(unicode.ToUpper(r)))
		}
	})
}

// titleRune appends the title case of a character.
func titleRune(b *strings.Builder, r rune) {
	more, ok := expands(r)
	if t := unicode.ToTitle(r); !ok || t != r {
		b.WriteRune(t)
		return
	}
	if unicode.IsTitle(r) {
		b.WriteRune(r)
		return
	}
	_, n := utf8.DecodeRuneInString(more)
	b.WriteString(more[:n])
	b.WriteString(strings.ToLower(more[n:]))
}

func capitalize(x string) string {
	return words(x, func(i int, _, _ rune) bool { return i == 0 })
}

// pythonTitle capitalizes the first letter of each run of cased letters.
func pythonTitle(x string) string {
	return words(x, func(i int, before, _ rune) bool { return i == 0 || !cased(before) })
}

// jinjaTitle capitalizes the first character of the text and those after a space, a hyphen or
// an opening bracket.
func jinjaTitle(x string) string {
	var b strings.Builder
	before := ' '
	for i, r := range x {
		if more, ok := expands(r); isSpace(before) || strings.ContainsRune("-({[<", before) {
			if !ok {
				more = string(unicode.ToUpper(r))
			}
			b.WriteString(more)
		} else {
			lowerAt(&b, x, i, r)
		}
		before = r
	}
	return b.String()
}

func swapCase(x string) string {
	var b strings.Builder
	for i, r := range x {
		switch more, ok := expands(r); {
		case unicode.IsUpper(r):
			lowerAt(&b, x, i, r)
		case ok:
			b.WriteString(more)
		default:
			b.WriteRune(unicode.ToUpper(r))
		}
	}
	return b.String()
}

// words lowers a text except for the characters at which begin reports the beginning of a word.
func words(x string, begin func(i int, before, r rune) bool) string {
	var b strings.Builder
	before := rune(0)
	for i, r := range x {
		if begin(i, before, r) {
			titleRune(&b, r)
		} else {
			lowerAt(&b, x, i, r)
		}
		before = r
	}
	return b.String()
}

func mapped(x string, write func(*strings.Builder, rune)) string {
	var b strings.Builder
	b.Grow(len(x))
	for _, r := range x {
		write(&b, r)
	}
	return b.String()
}

// isTitled behaves as Python's str.istitle.
func isTitled(x string) bool {
	inside, some := false, false
	for _, r := range x {
		switch {
		case unicode.IsUpper(r) || unicode.IsTitle(r):
			if inside {
				return false
			}
			inside, some = true, true
		case cased(r):
			if !inside {
				return false
			}
		default:
			inside = false
		}
	}
	return some
}
