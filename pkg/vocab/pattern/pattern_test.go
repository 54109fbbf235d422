package pattern_test

import (
	"errors"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
	"github.com/lamina-mesh/lamina/pkg/vocab/pattern"
)

func all(t testing.TB, src, text string) []string {
	t.Helper()
	p, err := pattern.Compile(src)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	p.Matcher(text).All(func(s, e int) bool {
		out = append(out, text[s:e])
		return true
	})
	return out
}

func TestPattern_Cases(t *testing.T) {
	for _, c := range []struct {
		src, text string
		want      []string
	}{
		{`a+?`, "aaa", []string{"a", "a", "a"}},
		{`a{2,3}`, "aaaaaaa", []string{"aaa", "aaa"}},
		{`(?i:'s|'ll)`, "'S 'ſ 'LL", []string{"'S", "'ſ", "'LL"}},
		{`\s+(?!\S)|\s+`, "  a \n", []string{" ", " ", " \n"}},
		{`(?<=a)b`, "ab b", []string{"b"}},
		{`(?<!a)b`, "ab b", []string{"b"}},
		{`a++a|b`, "aaab", []string{"b"}},
		{`(?>a|ab)c|b`, "abc ac", []string{"b", "ac"}},
		{`[\p{L}&&[^\p{Han}]]+`, "ab漢c", []string{"ab", "c"}},
		{`[^\S\n]+`, "a \t\n ", []string{" \t", " "}},
		{`\d{1,3}(?=(?:\d{3})*\b)`, "1234567 12", []string{"1", "234", "567", "12"}},
		{`(?=(\d{3})+(?!\d))`, "1234567", []string{"", ""}},
		{`[]a]+`, "]a", []string{"]a"}},
		{`[a\-z]+`, "a-z", []string{"a-z"}},
		{`[[:alpha:]]+`, "ab1", []string{"ab"}},
		{`x*`, "axb", []string{"", "x", ""}},
		{`(a*)*b`, "aab", []string{"aab"}},
		{`(?m)^a$`, "a\na", []string{"a", "a"}},
		{`\u4e00|\x{4e01}`, "一丁", []string{"一", "丁"}},
	} {
		if got := all(t, c.src, c.text); !slices.Equal(got, c.want) {
			t.Errorf("%s on %q: %q, want %q", c.src, c.text, got, c.want)
		}
	}
}

func TestPattern_AgreesWithStandardLibrary(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	atoms := []string{"a", "b", "[ab]", "[^a]", ".", "é", `\s`, `\d`}
	var build func(depth int) string
	build = func(depth int) string {
		if depth == 0 {
			return atoms[r.IntN(len(atoms))]
		}
		a, b := build(depth-1), build(depth-1)
		switch r.IntN(6) {
		case 0:
			return a + "|" + b
		case 1:
			return "(?:" + a + ")+"
		case 2:
			return "(?:" + a + ")??" + b
		case 3:
			return "(?:" + a + "){1,2}"
		case 4:
			return "(?i:" + a + ")" + b
		default:
			return "(?:" + a + "|" + b + ")" + a
		}
	}
	letters := []rune("aabbABé 1\n")
	for range 3000 {
		src := build(1 + r.IntN(3))
		want := regexp.MustCompile(src)
		for range 3 {
			var b strings.Builder
			for range r.IntN(12) {
				b.WriteRune(letters[r.IntN(len(letters))])
			}
			text := b.String()
			if got, want := all(t, src, text), want.FindAllString(text, -1); !slices.Equal(got, want) {
				t.Fatalf("%s on %q: %q, want %q", src, text, got, want)
			}
		}
	}
}

func TestPattern_IsLinear(t *testing.T) {
	for _, src := range []string{`(a+)+b|a`, `(a|a)*b|a`, `a*a*a*b|a`, `(?=(?:a{3})*b)a|a`, `\s+$|\s`, `(?>a+)b|a`,
		`a+(?!a)b|a`} {
		p, err := pattern.Compile(src)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Repeat("a", 200_000)
		if strings.Contains(src, `\s`) {
			text = strings.Repeat(" ", 200_000) + "x"
		}
		began, n := cputime.Process(), 0
		p.Matcher(text).All(func(int, int) bool { n++; return true })
		if took := cputime.Process() - began; took > 20*time.Second || n == 0 {
			t.Errorf("%s: %d matches in %v", src, n, took)
		}
	}
}

func TestCompile_Errors(t *testing.T) {
	for _, src := range []string{`(`, `)`, `[a`, `*a`, `a{2000}`, `\p{Nope}`, `\1`, `(?<=a+)b`, `(?z)`, `\`, `[b-a]`,
		`((((a{99}){99}){99}){99})`, `(?>(ab)+)c`,
		strings.Repeat("(", 300)} {
		_, err := pattern.Compile(src)
		var bad *pattern.Error
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v", src, err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(`(?i:'s|'t)|[^\r\n\p{L}]?\p{L}+|\s+(?!\S)`, "it's  a\n")
	f.Add(`(?<=\d)(?=(\d{3})+\b)`, "1234567")
	f.Fuzz(func(t *testing.T, src, text string) {
		if len(src) > 200 || len(text) > 1000 {
			return
		}
		p, err := pattern.Compile(src)
		if err != nil {
			return
		}
		text = strings.ToValidUTF8(text, "?")
		last := 0
		p.Matcher(text).All(func(s, e int) bool {
			if s < last || e < s || e > len(text) {
				t.Fatalf("%q on %q: match %d to %d after %d", src, text, s, e, last)
			}
			last = e
			return true
		})
	})
}

func TestCompile_NamesTheCharacter(t *testing.T) {
	_, err := pattern.Compile(`é[b-a]`)
	if err == nil || !strings.Contains(err.Error(), "character 6: ") {
		t.Errorf("%v, want the character after the range", err)
	}
}
