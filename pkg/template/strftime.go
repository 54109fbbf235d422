package template

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// strftime formats a time by C's directives, as Python does for a time without a time zone,
// with the flags -, _, 0 and ^ of the GNU library.
func strftime(t time.Time, format string) string {
	var b strings.Builder
	for format != "" {
		i := strings.IndexByte(format, '%')
		if i < 0 || i+1 == len(format) {
			break
		}
		b.WriteString(format[:i])
		format = format[i+1:]
		flag := byte(0)
		if len(format) > 1 && strings.IndexByte("-_0^", format[0]) >= 0 {
			flag, format = format[0], format[1:]
		}
		text, ok := directive(t, format[0])
		if !ok {
			text = "%" + format[:1]
		}
		format = format[1:]
		switch bare := strings.TrimLeft(text, "0 "); {
		case flag == '^':
			text = strings.ToUpper(text)
		case flag == 0 || bare == text || !ok:
		default:
			if bare == "" || bare[0] < '0' || bare[0] > '9' {
				bare = "0" + bare
			}
			fill := map[byte]string{'_': " ", '0': "0"}[flag]
			text = strings.Repeat(fill, len(text)-len(bare)) + bare
		}
		b.WriteString(text)
	}
	return b.String() + format
}

// directive returns the value of a directive; ok is false for an unknown one.
func directive(t time.Time, c byte) (text string, ok bool) {
	layouts := map[byte]string{'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'y': "06",
		'B': "January", 'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'p': "PM", 'P': "pm", 'e': "_2",
		'j': "002", 'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06", 'c': "Mon Jan _2 15:04:05 2006",
		'x': "01/02/06", 'X': "15:04:05", 'r': "03:04:05 PM"}
	week := func(first time.Weekday) string { // week of the year, for weeks that begin on first
		return fmt.Sprintf("%02d", (t.YearDay()+6-(int(t.Weekday()-first)+7)%7)/7)
	}
	switch c {
	case '%':
		return "%", true
	case 'n':
		return "\n", true
	case 't':
		return "\t", true
	case 'Z', 'z':
		return "", true
	case 'f':
		return fmt.Sprintf("%06d", t.Nanosecond()/1000), true
	case 'w':
		return strconv.Itoa(int(t.Weekday())), true
	case 'u':
		return strconv.Itoa((int(t.Weekday())+6)%7 + 1), true
	case 'U':
		return week(time.Sunday), true
	case 'W':
		return week(time.Monday), true
	case 'V':
		_, n := t.ISOWeek()
		return fmt.Sprintf("%02d", n), true
	case 'G':
		year, _ := t.ISOWeek()
		return strconv.Itoa(year), true
	case 'g':
		year, _ := t.ISOWeek()
		return fmt.Sprintf("%02d", year%100), true
	case 'C':
		return fmt.Sprintf("%02d", t.Year()/100), true
	case 's':
		return strconv.FormatInt(t.Unix(), 10), true
	case 'k':
		return fmt.Sprintf("%2d", t.Hour()), true
	case 'l':
		return fmt.Sprintf("%2d", (t.Hour()+11)%12+1), true
	}
	layout, ok := layouts[c]
	return t.Format(layout), ok
}
