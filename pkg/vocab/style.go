package vocab

import (
	"strings"
	"unicode/utf8"
)

// style is a scanner for one pattern of the family that began with GPT-2: contractions,
// words with an optional character before them, numbers, punctuation, white space.
// Every pattern of the family matches all text, so there is no text between pieces.
type style struct {
	contractions  bool  // 's 't 're 've 'm 'll 'd are separate pieces
	fold          bool  // contractions are matched in any case
	suffix        bool  // contractions are part of the word before them
	cased         bool  // a word is upper-case letters followed by lower-case ones
	noHan         bool  // with cased: runs of Chinese characters are separate pieces
	joined        bool  // an ASCII punctuation mark with ASCII letters after it is a piece
	symbols       bool  // punctuation is only \p{P} and \p{S}
	letters       class // characters of a word
	prefix        class // a word may begin with one character outside this class; 0 means with a space
	digits        int   // maximum length of a number; 0 means any, -1 that numbers are no pieces
	spacedNumbers bool  // numbers may begin with a space too
	tail          string
	oneTail       bool // at most one character of tail
	newlines      bool // white space up to a line end is a piece
	atEnd         bool // white space at the end of the text is one piece
}

const notPrefix = classLetter | classNumber | classNewline

func styleGPT2() style {
	return style{contractions: true, letters: classLetter, spacedNumbers: true}
}

func styleLlama3() style {
	return style{contractions: true, fold: true, letters: classLetter, prefix: notPrefix, digits: 3,
		tail: "\r\n", newlines: true}
}

func styleQwen2() style {
	s := styleLlama3()
	s.digits = 1
	return s
}

func styleQwen35() style {
	s := styleQwen2()
	s.letters |= classMark
	return s
}

func styleO200k() style {
	return style{suffix: true, fold: true, cased: true, letters: classLetter, prefix: notPrefix, digits: 3,
		tail: "\r\n/", newlines: true}
}

func styleTekken() style {
	s := styleO200k()
	s.suffix, s.digits = false, 1
	return s
}

func styleKimi() style {
	s := styleO200k()
	s.noHan, s.tail = true, "\r\n"
	return s
}

// styleDeepSeek3 is the last of DeepSeek-V3's three patterns. It does not match numbers
// and control characters, which become pieces between the matches.
func styleDeepSeek3() style {
	return style{joined: true, symbols: true, letters: classLetter | classMark,
		prefix: classNewline | classLetter | classPunct | classSymbol,
		digits: -1, tail: "\r\n", newlines: true}
}

// Kinds of ASCII characters, for the fast paths.
const (
	kindLetter = 1 << iota
	kindSpace
	kindOther // an ASCII character that is no letter, number or space
)

// asciiKinds is the kind of every byte.
const asciiKinds = "\x04\x04\x04\x04\x04\x04\x04\x04\x04\x02\x02\x02\x02\x02\x04\x04" +
	"\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04" +
	"\x02\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04\x04\x04\x04\x04\x04" +
	"\x04\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01" +
	"\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x04\x04\x04\x04\x04" +
	"\x04\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01" +
	"\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x04\x04\x04\x04\x04" +
	zeros64 + zeros64

const zeros64 = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// next returns the end of the piece that begins at s[i].
func (st *style) next(s string, i, end int) int {
	s = s[:end]
	// An ASCII word, alone or after a space, is by far the most common piece.
	if !st.cased {
		e := i
		if s[e] == ' ' && e+1 < len(s) {
			e++
		}
		if asciiKinds[s[e]] == kindLetter {
			for e++; e < len(s) && asciiKinds[s[e]] == kindLetter; e++ {
			}
			if e == len(s) || s[e] < utf8.RuneSelf {
				return e
			}
			return run(s, e, st.letters)
		}
	}
	if st.contractions && s[i] == '\'' {
		if n := contraction(s[i:], st.fold); n > 0 {
			return i + n
		}
	}
	if st.joined && s[i] < utf8.RuneSelf && i+1 < len(s) && classOf(rune(s[i]))&(classPunct|classSymbol) != 0 {
		e := i + 1
		for e < len(s) && asciiKinds[s[e]] == kindLetter {
			e++
		}
		if e > i+1 {
			return e
		}
	}
	if st.noHan {
		if e := run(s, i, classHan); e > i {
			return e
		}
	}
	if st.cased {
		if e := st.casedWord(s, i); e > i {
			return e
		}
	} else if e := st.word(s, i); e > i {
		return e
	}
	if st.digits >= 0 {
		if e := st.number(s, i); e > i {
			return e
		}
	}
	if e := st.punctuation(s, i); e > i {
		return e
	}
	return st.space(s, i)
}

func run(s string, i int, set class) int {
	for {
		c, n := classAt(s, i)
		if c&set == 0 {
			return i
		}
		i += n
	}
}

// word matches an optional first character and letters.
func (st *style) word(s string, i int) int {
	c, n := classAt(s, i)
	if c&st.letters != 0 && (st.prefix == 0 || c&st.prefix != 0) {
		return run(s, i, st.letters)
	}
	ok := s[i] == ' '
	if st.prefix != 0 {
		ok = c&st.prefix == 0
	}
	if ok {
		if e := run(s, i+n, st.letters); e > i+n {
			return e
		}
	}
	return run(s, i, st.letters)
}

// casedWord matches upper* lower+ or else upper+ lower*, each first with and
// then without an optional first character, and a contraction after it.
func (st *style) casedWord(s string, i int) int {
	c, n := classAt(s, i)
	begins := c&st.prefix == 0
	if begins {
		if e := st.upperLower(s, i+n); e > i+n {
			return st.ending(s, e)
		}
	}
	if e := st.upperLower(s, i); e > i {
		return st.ending(s, e)
	}
	if begins {
		if e := st.upperOnly(s, i+n); e > i+n {
			return st.ending(s, e)
		}
	}
	if e := st.upperOnly(s, i); e > i {
		return st.ending(s, e)
	}
	return i
}

func (st *style) ending(s string, e int) int {
	if st.suffix && e < len(s) && s[e] == '\'' {
		return e + contraction(s[e:], st.fold)
	}
	return e
}

// caseAt is classAt, except that with noHan Chinese characters have no case.
func (st *style) caseAt(s string, i int) (class, int) {
	c, n := classAt(s, i)
	if st.noHan && c&classHan != 0 {
		c &^= classUpper | classLower
	}
	return c, n
}

// upperLower matches upper* lower+ as a backtracking engine does: if no lower-case
// letter follows the longest run of upper-case letters, the match ends at the last
// character that is both upper and lower case.
func (st *style) upperLower(s string, i int) int {
	both := -1
	e := i
	for {
		c, n := st.caseAt(s, e)
		if c&classUpper == 0 {
			break
		}
		e += n
		if c&classLower != 0 {
			both = e
		}
	}
	if end := st.lower(s, e); end > e {
		return end
	}
	if both > 0 {
		return both
	}
	return i
}

// upperOnly matches upper+ lower*.
func (st *style) upperOnly(s string, i int) int {
	e := i
	for {
		c, n := st.caseAt(s, e)
		if c&classUpper == 0 {
			break
		}
		e += n
	}
	if e == i {
		return i
	}
	return st.lower(s, e)
}

func (st *style) lower(s string, i int) int {
	for {
		if i < len(s) && s[i] >= 'a' && s[i] <= 'z' {
			i++
			continue
		}
		c, n := st.caseAt(s, i)
		if c&classLower == 0 {
			return i
		}
		i += n
	}
}

func (st *style) number(s string, i int) int {
	b := i
	if st.spacedNumbers && s[i] == ' ' {
		b++
	}
	e := b
	for k := 0; st.digits == 0 || k < st.digits; k++ {
		c, n := classAt(s, e)
		if c&classNumber == 0 {
			break
		}
		e += n
	}
	if e == b {
		return i
	}
	return e
}

// punctuation matches an optional space, a run of characters that are no space, letter
// or number, and the tail characters after it.
func (st *style) punctuation(s string, i int) int {
	b := i
	if s[i] == ' ' {
		b++
	}
	not := classSpace | classNumber | st.letters | classLetter
	e := b
	for e < len(s) {
		if asciiKinds[s[e]] == kindOther && !st.symbols {
			e++
			continue
		}
		c, n := classAt(s, e)
		if st.symbols && c&(classPunct|classSymbol) == 0 || !st.symbols && c&not != 0 {
			break
		}
		e += n
	}
	if e == b {
		return i
	}
	for e < len(s) && strings.IndexByte(st.tail, s[e]) >= 0 {
		e++
		if st.oneTail {
			break
		}
	}
	return e
}

// space matches white space: with newlines up to its last line end, otherwise all of
// it, except the last character if text follows.
func (st *style) space(s string, i int) int {
	e, last, newline := i, i, -1
	for {
		c, n := classAt(s, e)
		if c&classSpace == 0 {
			break
		}
		last = e
		e += n
		if c&classNewline != 0 {
			newline = e
		}
	}
	switch {
	case e == i: // no alternative matched
		return st.gap(s, i)
	case st.atEnd && e == len(s):
		return e
	case st.newlines && newline > 0:
		return newline
	case e == len(s) || last == i:
		return e
	default:
		return last
	}
}

// gap returns the end of the text that no alternative matches.
func (st *style) gap(s string, i int) int {
	for {
		_, n := utf8.DecodeRuneInString(s[i:])
		i += n
		if !st.symbols || i == len(s) {
			return i
		}
		// The character at i begins the next piece unless nothing matches there either.
		c, n := classAt(s, i)
		if c&(classLetter|classMark|classPunct|classSymbol|classSpace) != 0 {
			return i
		}
		if c&st.prefix == 0 {
			if next, _ := classAt(s, i+n); next&st.letters != 0 {
				return i
			}
		}
	}
}

// contraction returns the length of an English contraction at the start of s,
// or 0.
func contraction(s string, fold bool) int {
	if len(s) < 2 || s[0] != '\'' {
		return 0
	}
	a, n := s[1], 1
	if fold {
		if strings.HasPrefix(s[1:], "ſ") { // case-folds to s
			return 1 + len("ſ")
		}
		a |= 0x20
	}
	switch a {
	case 's', 't', 'm', 'd':
		return 1 + n
	}
	if len(s) < 3 {
		return 0
	}
	b := s[2]
	if fold {
		b |= 0x20
	}
	switch {
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l':
		return 3
	}
	return 0
}
