package template

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// strftime formats a time by C's directives.
func strftime(t time.Time, format string) (string, error) {
	layouts := map[byte]string{'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'y': "06",
		'B': "January", 'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'p': "PM", 'Z': "MST", 'z': "-0700", 'e': "_2",
		'j': "002", 'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06", 'c': "Mon Jan _2 15:04:05 2006",
		'x': "01/02/06", 'X': "15:04:05"}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		i++
		bare := i < len(format) && format[i] == '-' // no leading zero
		if bare {
			i++
		}
		if i >= len(format) {
			return "", fmt.Errorf("strftime format ends within a directive")
		}
		text := ""
		switch c := format[i]; c {
		case '%':
			text = "%"
		case 'n':
			text = "\n"
		case 't':
			text = "\t"
		case 'f':
			text = fmt.Sprintf("%06d", t.Nanosecond()/1000)
		case 'w':
			text = strconv.Itoa(int(t.Weekday()))
		case 'u':
			text = strconv.Itoa((int(t.Weekday())+6)%7 + 1)
		default:
			layout, ok := layouts[c]
			if !ok {
				return "", fmt.Errorf("strftime directive %%%c is not supported", c)
			}
			text = t.Format(layout)
		}
		if bare {
			if cut := strings.TrimLeft(text, "0 "); cut != "" {
				text = cut
			} else {
				text = "0"
			}
		}
		b.WriteString(text)
	}
	return b.String(), nil
}
