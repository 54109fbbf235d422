package vocab

import "strings"

// isolate makes each match, and each text between matches, a piece. match returns the
// end of the match that begins at s[i], or i if there is none. first holds the bytes
// that a match may begin with.
type isolate struct {
	match func(s string, i, end int) int
	first [256]bool
}

// newIsolate finds the bytes that a match may begin with by trial: each ASCII
// character is tried alone and before some others. Any other byte may begin a match.
func newIsolate(match func(s string, i, end int) int) *isolate {
	c := &isolate{match: match}
	for b := range c.first {
		if b >= 0x80 {
			c.first[b] = true
			continue
		}
		for _, after := range []string{"", "a", "!", "0", "00", "A", "漢"} {
			s := string(rune(b)) + after
			if match(s, 0, len(s)) > 0 {
				c.first[b] = true
			}
		}
	}
	return c
}

func (c *isolate) next(s string, i, end int) int {
	if c.first[s[i]] {
		if e := c.match(s, i, end); e > i {
			return e
		}
	}
	for {
		_, n := classAt(s[:end], i)
		i += n
		for i < end && !c.first[s[i]] {
			i++
		}
		if i >= end || c.match(s, i, end) > i {
			return i
		}
	}
}

// runs matches at most limit characters (0 means any number) that are in a class or in
// among, after an optional character of the class lead.
func runs(set class, among string, lead class, limit int) func(string, int, int) int {
	return func(s string, i, end int) int {
		s = s[:end]
		b := i
		if lead != 0 {
			if c, n := classAt(s, i); c&lead != 0 {
				b += n
			}
		}
		e := b
		for k := 0; limit == 0 || k < limit; k++ {
			c, n := classAt(s, e)
			if n == 0 || c&set == 0 && (among == "" || !strings.Contains(among, s[e:e+n])) {
				break
			}
			e += n
		}
		if e == b {
			if lead != 0 && set&lead != 0 && b > i { // the lead itself is in the class
				return b
			}
			return i
		}
		return e
	}
}

// between matches characters in the given ranges of code points.
func between(ranges ...[2]rune) func(string, int, int) int {
	return func(s string, i, end int) int {
		for e := i; ; {
			r, n := runeAt(s[:end], e)
			in := false
			for _, g := range ranges {
				in = in || n > 0 && r >= g[0] && r <= g[1]
			}
			if !in {
				return e
			}
			e += n
		}
	}
}

// threeDigits matches exactly three ASCII digits.
func threeDigits(s string, i, end int) int {
	if i+3 > end {
		return i
	}
	for k := i; k < i+3; k++ {
		if s[k] < '0' || s[k] > '9' {
			return i
		}
	}
	return i + 3
}

// lineEnds matches a run of line feeds.
func lineEnds(s string, i, end int) int {
	for i < end && s[i] == '\n' {
		i++
	}
	return i
}
