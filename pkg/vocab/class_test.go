package vocab

import (
	"testing"
	"unicode"
)

// classByTables computes classOf with the tables of package unicode.
func classByTables(r rune) class {
	var c class
	set := func(b class, on bool) {
		if on {
			c |= b
		}
	}
	letter, mark := unicode.Is(unicode.L, r), unicode.Is(unicode.M, r)
	either := mark || unicode.In(r, unicode.Lm, unicode.Lo)
	set(classLetter, letter)
	set(classNumber, unicode.Is(unicode.N, r))
	set(classSpace, unicode.Is(unicode.White_Space, r))
	set(classNewline, r == '\n' || r == '\r')
	set(classMark, mark)
	set(classPunct, unicode.Is(unicode.P, r))
	set(classSymbol, unicode.Is(unicode.S, r))
	set(classUpper, either || unicode.In(r, unicode.Lu, unicode.Lt))
	set(classLower, either || unicode.Is(unicode.Ll, r))
	set(classHan, unicode.Is(unicode.Han, r))
	set(classDigit, unicode.Is(unicode.Nd, r))
	set(classWord, letter || mark ||
		unicode.In(r, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control))
	assigned := unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z)
	set(classControl, !assigned)
	set(classASCII, r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z')
	return c
}

// The table may know characters that package unicode does not know yet.
func TestClass_TableIsUnicode(t *testing.T) {
	newer := 0
	for r := rune(0); r <= unicode.MaxRune; r++ {
		got, want := classOf(r), classByTables(r)
		if want == classControl && got != want {
			newer++
			continue
		}
		if got != want {
			t.Errorf("%U: %b, want %b", r, got, want)
		}
	}
	if newer > 10_000 {
		t.Errorf("%d characters are newer than %s", newer, unicode.Version)
	}
}
