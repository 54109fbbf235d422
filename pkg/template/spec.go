package template

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// spec is a format specification of Python. The directives of "%" use a part of it.
type spec struct {
	fill      string
	align     byte // <, >, ^, = or 0
	sign      byte // +, -, space or 0
	alternate bool
	zero      bool
	width     int
	group     byte // , or _ or 0
	precision int  // -1 where omitted
	verb      byte // 0 where omitted
}

const maxWidth = 1 << 20 // of one formatted value

// parseSpec reads [[fill]align][sign][z][#][0][width][group][.precision][type].
func parseSpec(t string) (spec, bool) {
	p := spec{fill: " ", precision: -1}
	if _, n := utf8.DecodeRuneInString(t); n > 0 && len(t) > n && strings.IndexByte("<>^=", t[n]) >= 0 {
		p.fill, p.align, t = t[:n], t[n], t[n+1:]
	} else if t != "" && strings.IndexByte("<>^=", t[0]) >= 0 {
		p.align, t = t[0], t[1:]
	}
	take := func(set string) byte {
		if t == "" || strings.IndexByte(set, t[0]) < 0 {
			return 0
		}
		c := t[0]
		t = t[1:]
		return c
	}
	p.sign = take("+- ")
	p.alternate = take("#") != 0
	p.zero = take("0") != 0
	ok := true
	number := func() int {
		n := 0
		for t != "" && t[0] >= '0' && t[0] <= '9' {
			n = n*10 + int(t[0]-'0')
			t = t[1:]
			if n > maxWidth {
				ok = false
				return 0
			}
		}
		return n
	}
	p.width = number()
	p.group = take(",_")
	if take(".") != 0 {
		if t == "" || t[0] < '0' || t[0] > '9' {
			return p, false
		}
		p.precision = number()
	}
	p.verb = take("sdbcoxXeEfFgGn%")
	return p, ok && t == ""
}

// pad pads text to the width; align is the alignment if the specification has none.
func (p *spec) pad(text string, align byte) (left, right string) {
	n := p.width - utf8.RuneCountInString(text)
	if n <= 0 {
		return "", ""
	}
	if p.align != 0 {
		align = p.align
	}
	switch align {
	case '<':
		return "", strings.Repeat(p.fill, n)
	case '^':
		return strings.Repeat(p.fill, n/2), strings.Repeat(p.fill, n-n/2)
	}
	return strings.Repeat(p.fill, n), ""
}

// number formats a sign, a prefix and digits.
func (p *spec) number(negative bool, prefix, digits string) string {
	sign := ""
	switch {
	case negative:
		sign = "-"
	case p.sign == '+' || p.sign == ' ':
		sign = string(p.sign)
	}
	q := *p
	if q.zero && q.align == 0 {
		q.align, q.fill = '=', "0"
	}
	size := 3
	if strings.IndexByte("boxX", q.verb) >= 0 && q.verb != 0 {
		size = 4
	}
	body := grouped(digits, q.group, size)
	if q.align != '=' {
		text := sign + prefix + body
		left, right := q.pad(text, '>')
		return left + text + right
	}
	n := q.width - len(sign) - len(prefix) - utf8.RuneCountInString(body)
	if n > 0 && q.fill == "0" && q.group != 0 { // the zeros are grouped too
		whole, tail := splitDigits(digits)
		for len(sign)+len(prefix)+len(grouped(whole+tail, q.group, size)) < q.width {
			whole = "0" + whole
		}
		return sign + prefix + strings.TrimPrefix(grouped(whole+tail, q.group, size), string(q.group))
	}
	return sign + prefix + strings.Repeat(q.fill, max(0, n)) + body
}

func splitDigits(digits string) (whole, tail string) {
	i := strings.IndexFunc(digits,
		func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') && (r < 'A' || r > 'F') })
	if i < 0 {
		return digits, ""
	}
	return digits[:i], digits[i:]
}

// grouped inserts a separator between groups of digits, counted from the point.
func grouped(digits string, mark byte, size int) string {
	if mark == 0 {
		return digits
	}
	whole, tail := splitDigits(digits)
	if strings.ContainsAny(whole, "e") { // an exponent is not a digit
		return digits
	}
	var b strings.Builder
	for i, c := range []byte(whole) {
		if i > 0 && (len(whole)-i)%size == 0 {
			b.WriteByte(mark)
		}
		b.WriteByte(c)
	}
	return b.String() + tail
}

// integer formats an integer.
func (p *spec) integer(i int64) string {
	u := uint64(i)
	if i < 0 {
		u = -u
	}
	base, prefix := 10, ""
	switch p.verb {
	case 'b':
		base, prefix = 2, "0b"
	case 'o':
		base, prefix = 8, "0o"
	case 'x':
		base, prefix = 16, "0x"
	case 'X':
		base, prefix = 16, "0X"
	}
	if !p.alternate {
		prefix = ""
	}
	digits := strconv.FormatUint(u, base)
	if p.verb == 'X' {
		digits = strings.ToUpper(digits)
	}
	if n := p.precision - len(digits); n > 0 {
		digits = strings.Repeat("0", n) + digits
	}
	return p.number(i < 0, prefix, digits)
}

// float formats a number with a fraction.
func (p *spec) float(f float64) string {
	negative := math.Signbit(f) && !math.IsNaN(f)
	a := math.Abs(f)
	digits := ""
	precision := p.precision
	verb := p.verb
	switch {
	case math.IsNaN(f):
		digits = "nan"
	case math.IsInf(f, 0):
		digits = "inf"
	case verb == 0 && precision < 0:
		digits = formatFloat(a)
	default:
		if precision < 0 {
			precision = 6
		}
		switch verb {
		case 'f', 'F':
			digits = strconv.FormatFloat(a, 'f', precision, 64)
		case 'e', 'E':
			digits = strconv.FormatFloat(a, 'e', precision, 64)
		case '%':
			digits = strconv.FormatFloat(a*100, 'f', precision, 64)
		default:
			digits = general(a, precision, p.alternate, verb == 0)
		}
	}
	if p.alternate && (verb == 'f' || verb == 'F') && p.precision == 0 {
		digits += "."
	}
	if verb == 'E' || verb == 'G' || verb == 'F' {
		digits = strings.ToUpper(digits)
	}
	if verb == '%' {
		digits += "%"
	}
	return p.number(negative, "", digits)
}

// general implements C's %g; point keeps one digit after the point, as Python's repr does.
func general(a float64, precision int, keep, point bool) string {
	if precision == 0 {
		precision = 1
	}
	e := strconv.FormatFloat(a, 'e', precision-1, 64)
	exponent, _ := strconv.Atoi(e[strings.IndexByte(e, 'e')+1:]) // written just above
	most := precision
	if point {
		most = precision - 1
	}
	cut := func(digits string) string {
		if keep || !strings.Contains(digits, ".") {
			return digits
		}
		return strings.TrimSuffix(strings.TrimRight(digits, "0"), ".")
	}
	if exponent < -4 || exponent >= max(most, 1) && exponent >= most {
		i := strings.IndexByte(e, 'e')
		return cut(e[:i]) + e[i:]
	}
	digits := cut(strconv.FormatFloat(a, 'f', max(0, precision-1-exponent), 64))
	if point && !strings.Contains(digits, ".") {
		digits += ".0"
	}
	return digits
}

// text formats a string.
func (p *spec) text(t string) (left, body, right string) {
	if p.precision >= 0 {
		t = t[:offset(t, p.precision)]
	}
	left, right = p.pad(t, '<')
	return left, t, right
}
