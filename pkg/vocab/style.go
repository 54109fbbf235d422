package vocab

import (
	"strings"
	"unicode/utf8"
)

// style describes one pattern of the family that GPT-2 began: contractions,
// words with one optional character before them, numbers, punctuation, white
// space. Every such pattern covers all text, so pieces follow one another
// without gaps.
type style struct {
	contractions  bool  // 's 't 're 've 'm 'll 'd as pieces of their own
	fold          bool  // contractions in any case
	suffix        bool  // contractions end a word instead of standing alone
	cased         bool  // words are upper-case letters followed by lower-case ones
	letters       class // what words are made of
	prefix        bool  // a word may begin with any one character but letters, numbers and line ends; else with a space
	digits        int   // longest number, 0 for any length
	spacedNumbers bool  // numbers, too, may begin with a space
	tail          string
	newlines      bool // white space up to a line end is a piece
}

func styleGPT2() style {
	return style{contractions: true, letters: classLetter, spacedNumbers: true}
}

func styleLlama3() style {
	return style{contractions: true, fold: true, letters: classLetter, prefix: true, digits: 3, tail: "\r\n", newlines: true}
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
	return style{suffix: true, fold: true, cased: true, letters: classLetter, prefix: true, digits: 3, tail: "\r\n/", newlines: true}
}

func styleTekken() style {
	s := styleO200k()
	s.suffix = false
	s.digits = 1
	return s
}

// next returns the end of the piece that begins at s[i].
func (st *style) next(s string, i int) int {
	if st.contractions {
		if n := contraction(s[i:], st.fold); n > 0 {
			return i + n
		}
	}
	if st.cased {
		if e := st.casedWord(s, i); e > i {
			return e
		}
	} else if e := st.word(s, i); e > i {
		return e
	}
	if e := st.number(s, i); e > i {
		return e
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
	if c&st.letters != 0 {
		return run(s, i, st.letters)
	}
	ok := s[i] == ' '
	if st.prefix {
		ok = c&(classLetter|classNumber|classNewline) == 0
	}
	if ok {
		if e := run(s, i+n, st.letters); e > i+n {
			return e
		}
	}
	return i
}

// casedWord matches upper* lower+ or else upper+ lower*, each first with and
// then without an optional first character, and a contraction after it.
func (st *style) casedWord(s string, i int) int {
	c, n := classAt(s, i)
	begins := c&(classLetter|classNumber|classNewline) == 0
	for _, match := range []func(string, int) int{upperLower, upperOnly} {
		if begins {
			if e := match(s, i+n); e > i+n {
				return st.ending(s, e)
			}
		}
		if e := match(s, i); e > i {
			return st.ending(s, e)
		}
	}
	return i
}

func (st *style) ending(s string, e int) int {
	if st.suffix {
		return e + contraction(s[e:], st.fold)
	}
	return e
}

// upperLower matches upper* lower+ as a backtracking engine would: where no
// lower-case letter follows the longest run, it gives back up to the last
// character that can be either.
func upperLower(s string, i int) int {
	both := -1
	e := i
	for {
		c, n := classAt(s, e)
		if c&classUpper == 0 {
			break
		}
		e += n
		if c&classLower != 0 {
			both = e
		}
	}
	if end := run(s, e, classLower); end > e {
		return end
	}
	if both > 0 {
		return both
	}
	return i
}

// upperOnly matches upper+ lower*.
func upperOnly(s string, i int) int {
	e := run(s, i, classUpper)
	if e == i {
		return i
	}
	return run(s, e, classLower)
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

// punctuation matches an optional space, everything that is neither space,
// letter nor number, and the tail characters after it.
func (st *style) punctuation(s string, i int) int {
	b := i
	if s[i] == ' ' {
		b++
	}
	not := classSpace | classNumber | st.letters | classLetter
	e := b
	for e < len(s) {
		c, n := classAt(s, e)
		if c&not != 0 {
			break
		}
		e += n
	}
	if e == b {
		return i
	}
	for e < len(s) && strings.IndexByte(st.tail, s[e]) >= 0 {
		e++
	}
	return e
}

// space matches white space: up to its last line end where the style says so,
// else all of it but the last character when text follows.
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
	case e == i: // no alternative matched; one character keeps the scan moving
		_, n := utf8.DecodeRuneInString(s[i:])
		return i + n
	case st.newlines && newline > 0:
		return newline
	case e == len(s) || last == i:
		return e
	default:
		return last
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
		if strings.HasPrefix(s[1:], "ſ") { // folds to s
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
