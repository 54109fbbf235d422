package vocab

import "strings"

// indexFrom is strings.Index from an offset on.
func indexFrom(s, sub string, from int) int {
	if n := strings.Index(s[from:], sub); n >= 0 {
		return from + n
	}
	return -1
}

// knownPattern returns the scanner for a regular expression, or nil. The alternatives
// of a style are recognised one by one, since real files spell each in several ways.
func knownPattern(p string) scanner {
	switch p {
	case `\p{N}`, `\d`:
		return newIsolate(runs(numberOf(p), "", 0, 1))
	case `\p{N}+`, `\d+`:
		return newIsolate(runs(numberOf(p), "", 0, 0))
	case `\p{N}{1,3}`, `\d{1,3}`:
		return newIsolate(runs(numberOf(p), "", 0, 3))
	case `[\r\n]`, "[\r\n]":
		return newIsolate(runs(classNewline, "", 0, 1))
	case `\s?\p{L}+`:
		return newIsolate(runs(classLetter, "", classSpace, 0))
	case `\s?\p{P}+`:
		return newIsolate(runs(classPunct, "", classSpace, 0))
	case `[0-9][0-9][0-9]`, `[0-9]{3}`:
		return newIsolate(threeDigits)
	case "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+":
		return newIsolate(between([2]rune{0x4e00, 0x9fa5}, [2]rune{0x3040, 0x30ff}))
	case "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", patternDeepSeekHan:
		return newIsolate(between([2]rune{0x0800, 0x9fa5}, [2]rune{0xac00, 0xd7ff}))
	}
	if st := knownStyle(alternativesOf(p)); st != nil {
		return st
	}
	return nil
}

func numberOf(p string) class {
	if p[1] == 'd' {
		return classDigit
	}
	return classNumber
}

// covers reports whether a scanner's pattern matches all text, so that there is no
// text between matches.
func covers(s scanner) bool {
	st, ok := s.(*style)
	return ok && !st.symbols
}

// alternativesOf splits a pattern at its top-level bars.
func alternativesOf(p string) []string {
	var out []string
	depth, class, from := 0, false, 0
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '[':
			class = true
		case ']':
			class = false
		case '(':
			if !class {
				depth++
			}
		case ')':
			if !class {
				depth--
			}
		case '|':
			if !class && depth == 0 {
				out = append(out, p[from:i])
				from = i + 1
			}
		}
	}
	return append(out, p[min(from, len(p)):])
}

// Alternatives of styles, as the authors' files spell them.
const (
	upperSet = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
	lowerSet = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
	upperHan = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]`
	lowerHan = `[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]`
	asciiSet = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
)

// stage orders the alternatives of a style.
type stage int

const (
	stageContraction stage = iota
	stageHan
	stageJoined
	stageWord
	stageWord2
	stageNumber
	stagePunctuation
	stageEnd
	stageNewline
	stageTrailing
	stageSpace
)

// knownStyle builds a style from alternatives. It returns nil if one is unknown or if
// they are in another order.
func knownStyle(alts []string) *style {
	if len(alts) > 40 {
		return nil
	}
	// GPT-2's contractions are separate alternatives.
	plain := []string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}
	st := style{digits: -1}
	last := stage(-1)
	var have [stageSpace + 1]bool
	if len(alts) > len(plain) {
		same := true
		for i, a := range plain {
			same = same && alts[i] == a
		}
		if same {
			st.contractions = true
			last, alts = stageContraction, alts[len(plain):]
		}
	}
	for i, a := range alts {
		s, ok := st.alternative(a, alts, i)
		if !ok || s <= last {
			return nil
		}
		last, have[s] = s, true
	}
	complete := have[stageWord] && have[stagePunctuation] && have[stageSpace] && have[stageTrailing] &&
		(have[stageNumber] || st.symbols) && st.cased == have[stageWord2] && st.noHan == have[stageHan]
	if !complete || st.symbols && (st.cased || st.digits >= 0) {
		return nil
	}
	return &st
}

// alternative adds one alternative to the style and returns its place in the order.
func (st *style) alternative(a string, alts []string, i int) (stage, bool) {
	raw := a
	if raw == asciiSet {
		st.joined = true
		return stageJoined, true
	}
	a = unpossessive(a)
	if strings.Contains(raw, `\s++`) && raw != `\s++$` || strings.Contains(raw, `3}+`) {
		return 0, false
	}
	words := func(a string) (string, bool) { // with and without the optional contraction
		for _, c := range []string{`(?i:'s|'t|'re|'ve|'m|'ll|'d)?`,
			`(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?`} {
			if rest, ok := strings.CutSuffix(a, c); ok {
				return rest, true
			}
		}
		return a, false
	}
	switch a {
	case `(?i:'s|'t|'re|'ve|'m|'ll|'d)`, `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`,
		`'(?i:[sdmt]|ll|ve|re)`,
		`'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])`, `(?i:'(?:[sdmt]|ll|ve|re))`:
		st.contractions, st.fold = true, true
		return stageContraction, true
	case `'(?:[sdmt]|ll|ve|re)`, `(?:'s|'t|'re|'ve|'m|'ll|'d)`, `'s|'t|'re|'ve|'m|'ll|'d`:
		st.contractions = true
		return stageContraction, true
	case `[\p{Han}]+`, `\p{Han}+`:
		st.noHan = true
		return stageHan, true
	case ` ?\p{L}+`:
		st.letters = classLetter
		return stageWord, true
	case `[^\r\n\p{L}\p{N}]?\p{L}+`:
		st.letters, st.prefix = classLetter, notPrefix
		return stageWord, true
	case `[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+`:
		st.letters, st.prefix = classLetter|classMark, notPrefix
		return stageWord, true
	case `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+`:
		st.letters, st.prefix = classLetter|classMark, classNewline|classLetter|classPunct|classSymbol
		return stageWord, true
	case `\p{N}`, `\p{N}{1}`:
		st.digits = 1
		return stageNumber, true
	case `\p{N}{1,3}`:
		st.digits = 3
		return stageNumber, true
	case `\p{N}{1,2}`:
		st.digits = 2
		return stageNumber, true
	case `\p{N}+`:
		st.digits = 0
		return stageNumber, true
	case ` ?\p{N}+`:
		st.digits, st.spacedNumbers = 0, true
		return stageNumber, true
	case ` ?[^\s\p{L}\p{N}]+`:
		return stagePunctuation, st.letters == classLetter
	case ` ?[^\s\p{L}\p{N}]+[\r\n]*`:
		st.tail = "\r\n"
		return stagePunctuation, st.letters == classLetter
	case ` ?[^\s\p{L}\p{N}]+[\r\n/]*`:
		st.tail = "\r\n/"
		return stagePunctuation, st.letters == classLetter
	case ` ?[^\s\p{L}\p{N}]+[\r\n/]?`:
		st.tail, st.oneTail = "\r\n/", true
		return stagePunctuation, st.letters == classLetter
	case ` ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*`:
		st.tail = "\r\n"
		return stagePunctuation, st.letters == classLetter|classMark
	case ` ?[\p{P}\p{S}]+[\r\n]*`:
		st.tail, st.symbols = "\r\n", true
		return stagePunctuation, st.letters == classLetter|classMark
	case `\s+$`:
		st.atEnd = true
		return stageEnd, raw == `\s++$`
	case `\s*[\r\n]+`, `\s*[\r\n]`: // the same, since \s matches line ends too
		st.newlines = true
		return stageNewline, true
	case `\s+(?!\S)`:
		return stageTrailing, true
	case `\s+`, `\s`: // the alternative before it leaves one character
		return stageSpace, true
	}
	if rest, suffix := words(a); true {
		upper, lower := upperSet, lowerSet
		if st.noHan {
			upper, lower = upperHan, lowerHan
		}
		const lead = `[^\r\n\p{L}\p{N}]?`
		switch rest {
		case lead + upper + `*` + lower + `+`:
			st.cased, st.suffix, st.fold = true, suffix, suffix
			st.letters, st.prefix = classLetter, notPrefix
			return stageWord, true
		case lead + upper + `+` + lower + `*`:
			return stageWord2, st.cased && st.suffix == suffix
		}
	}
	return 0, false
}

// unpossessive removes the possessive marks of a pattern. The alternatives of a style
// never backtrack, so the marks change nothing.
func unpossessive(a string) string {
	a = strings.ReplaceAll(a, "++", "+")
	a = strings.ReplaceAll(a, "?+", "?")
	return strings.ReplaceAll(a, "*+", "*")
}
