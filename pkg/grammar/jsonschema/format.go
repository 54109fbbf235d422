package jsonschema

import (
	"strings"

	"github.com/lamina-mesh/lamina/pkg/grammar/language"
	"github.com/lamina-mesh/lamina/pkg/grammar/regex"
)

// isAsserted reports whether a format constrains strings and is not only an annotation.
func isAsserted(format string) bool {
	_, ok := formatSource(format)
	return ok
}

// format returns the language of a format, or nil if the format does not constrain strings.
func (x *expander) format(p *place) (*language.Language, error) {
	v := p.v.get("format")
	if v == nil {
		return nil, nil
	}
	if v.kind != isString {
		return nil, x.fail(p, "format", "a string")
	}
	source, ok := formatSource(v.text)
	if !ok {
		return nil, nil // a format of numbers, or an unknown one: an annotation
	}
	key := "format " + v.text
	if l := x.langs[key]; l != nil {
		return l, nil
	}
	n, err := regex.Parse(source, regex.Common)
	if err != nil {
		return nil, err
	}
	l := &language.Language{Key: key, Node: n, Whole: true}
	x.langs[key] = l
	return l, nil
}

// Parts of formats.
const (
	day   = `(?:0[1-9]|1[0-9]|2[0-8])`
	leap  = `(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)`
	clock = `(?:[01][0-9]|2[0-3]):[0-5][0-9]`
	// A leap second is accepted only in UTC: with another offset it is at another hour.
	moment = `(?:` + clock + `:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[-+]` + clock +
		`)|23:59:60(?:\.[0-9]+)?(?:[Zz]|[-+]00:00))`
	octet = `(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
	ipv4  = octet + `(?:\.` + octet + `){3}`
	atom  = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
	// label has up to 63 characters, short up to 40. Two hyphens after the second character
	// are excluded: they mark Punycode, whose rules are not a regular language.
	label = `(?:` + an + `(?:` + ldh + `?` + an + `)?|` + an + ldh + `{2}` + an + `|` + an + ldh + `(?:` + an + ldh +
		`|-` + an + `)` + ldh + `{0,58}` + an + `)`
	short = `(?:` + an + `(?:` + ldh + `?` + an + `)?|` + an + ldh + `{2}` + an + `|` + an + ldh + `(?:` + an + ldh +
		`|-` + an + `)` + ldh + `{0,35}` + an + `)`
	an  = `[A-Za-z0-9]`
	ldh = `[A-Za-z0-9-]`
	// international is a label of non-ASCII characters that are allowed in any context, short
	// enough for 63 bytes of Punycode.
	international = `(?:[0-9a-z\x{DF}-\x{F6}\x{F8}-\x{FF}` +
		`\x{3B1}-\x{3C9}\x{430}-\x{45F}\x{3041}-\x{3096}\x{30A1}-\x{30FA}\x{4E00}-\x{9FFF}\x{AC00}-\x{D7A3}]{1,14})`
	// domain has up to six labels of 40 characters, so that it stays within the 253 of a host name.
	domain = short + `(?:\.` + short + `){0,5}`
	// mail is a label of 30 characters. Six of them leave 64 of 254 characters for the local part.
	mail = an + `(?:` + ldh + `{0,28}` + an + `)?`

	hex     = `%[0-9A-Fa-f]{2}`
	unres   = `[A-Za-z0-9._~!$&'()*+,;=-]`
	segment = `(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|` + hex + `)`
	query   = `(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|` + hex + `)*`
	uriTail = `(?:\?` + query + `)?(?:#` + query + `)?`
	future  = `[Vv][0-9A-Fa-f]+\.` + `[A-Za-z0-9._~!$&'()*+,;=:-]+`
	host    = `(?:(?:` + unres + `|` + hex + `)*|\[(?:` + `IPV6|` + future + `)\])`
	port    = `(?::[0-9]{0,5})?`
	author  = `//(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|` + hex + `)*@)?` + host + port + `(?:/` + segment + `*)*`
	rooted  = `/(?:` + segment + `+(?:/` + segment + `*)*)?`
	uri     = `[A-Za-z][A-Za-z0-9+.-]*:(?:` + author + `|` + rooted + `|` + segment + `+(?:/` + segment + `*)*)?` +
		uriTail
	// A first segment with a colon would be a scheme.
	relative = `(?:` + author + `|` + rooted + `|(?:` + unres + `|@|` + hex + `)+(?:/` + segment + `*)*)?` + uriTail

	pointer = `(?:/(?:[^/~]|~[01])*)*`
)

const fullDate = `(?:[0-9]{4}-(?:(?:0[1-9]|1[0-2])-` + day + `|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)|` +
	leap + `-02-29)`

// ipv6 returns the text form of RFC 4291: eight groups, or fewer with one ::, of which the last
// two may be written as an IPv4 address.
func ipv6() string {
	const group = `[0-9A-Fa-f]{1,4}`
	end := "(?:" + group + ":" + group + "|" + ipv4 + ")"
	forms := []string{"(?:" + group + ":){6}" + end}
	for before := range 8 {
		left := ""
		if before > 0 {
			left = group + strings.Repeat(":"+group, before-1)
		}
		// At most 7 - before groups come after ::, which stands for at least one group.
		after := []string{""}
		for n := 1; n <= 7-before; n++ {
			after = append(after, group+strings.Repeat(":"+group, n-1))
			if n >= 2 {
				after = append(after, strings.Repeat(group+":", n-2)+ipv4)
			}
		}
		forms = append(forms, left+"::(?:"+strings.Join(after, "|")+")")
	}
	return strings.Join(forms, "|")
}

// beyondASCII adds the non-ASCII characters of RFC 3987 wherever a URI allows unreserved ones.
func beyondASCII(source string) string {
	return strings.ReplaceAll(source, "._~!",
		`._~\x{A0}-\x{D7FF}\x{F900}-\x{FDCF}\x{FDF0}-\x{FFEF}\x{10000}-\x{1FFFD}!`)
}

// formatSource returns the regular expression of a format. It covers all strings of the format
// or, if their automaton would be too large, those in common use.
func formatSource(name string) (string, bool) {
	withIPv6 := func(s string) string { return strings.ReplaceAll(s, "IPV6", ipv6()) }
	switch name {
	case "date":
		return fullDate, true
	case "time":
		return moment, true
	case "date-time":
		return fullDate + `[Tt]` + moment, true
	case "duration":
		return `P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?` +
			`|[0-9]+D)(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?` +
			`|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))`, true
	case "uuid":
		return `[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}`, true
	case "ipv4":
		return ipv4, true
	case "ipv6":
		return ipv6(), true
	case "hostname", "idn-hostname":
		ascii := `(?:` + label + `\.){0,2}` + label + `|` + domain
		if name == "hostname" {
			return ascii, true
		}
		return ascii + `|(?:` + international + `[.\x{3002}\x{FF0E}\x{FF61}]){0,6}` + international, true
	case "email", "idn-email":
		atom, domain := atom, mail+`(?:\.`+mail+`){0,5}`
		if name == "idn-email" {
			atom = atom[:len(atom)-2] + `\x{80}-\x{10FFFF}-]`
			domain = `(?:(?:` + international + `\.){0,4}` + international + `|` + domain + `)`
		}
		return `(?:` + atom + `{1,64}|` + atom + `(?:\.?` + atom + `){0,31})@` + domain, true
	case "uri":
		return withIPv6(uri), true
	case "uri-reference":
		return withIPv6(`(?:` + uri + `|` + relative + `)`), true
	case "iri":
		return withIPv6(beyondASCII(uri)), true
	case "iri-reference":
		return withIPv6(beyondASCII(`(?:` + uri + `|` + relative + `)`)), true
	case "uri-template":
		const character = `(?:[A-Za-z0-9_]|` + hex + `)`
		const variable = character + `+(?:\.` + character + `+)*(?::[1-9][0-9]{0,3}|\*)?`
		return `(?:[!#$&-;=?-\[\]_a-z~A-Z\x{A0}-\x{D7FF}\x{F900}-\x{FDCF}\x{FDF0}-\x{FFEF}\x{10000}-\x{1FFFD}]|` + hex +
			`|\{[+#./;?&=,!@|]?` + variable + `(?:,` + variable + `)*\})*`, true
	case "json-pointer":
		return pointer, true
	case "relative-json-pointer":
		return `(?:0|[1-9][0-9]*)(?:#|` + pointer + `)`, true
	case "regex":
		return expression(3), true
	case "byte":
		return `(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?`, true
	}
	return "", false
}

// expression returns a regular expression for the regular expressions of ECMA-262 (with its u
// flag) with groups nested at most depth deep. It leaves out named groups, named
// backreferences, \p, and ranges whose order an automaton would have to compare.
func expression(depth int) string {
	const (
		escape = `\\(?:[dDsSwWfnrtv]|c[A-Za-z]|x[0-9A-Fa-f]{2}` +
			`|u[0-9A-Ca-cEFef][0-9A-Fa-f]{3}|u[Dd][0-7][0-9A-Fa-f]{2}|[\^$\\.*+?()\[\]{}|/])`
		class  = `\[\^?(?:a-[b-z]|a-f|A-Z|A-F|0-[1-9]|[^\\\]-]|` + escape + `|\\[b-])*-?\]`
		counts = `[*+?]|\{(?:[0-9]{1,3},?|0,[0-9]{1,3}|[1-9],[1-9][0-9]{1,2})\}`
	)
	atom := `[^\^$\\.*+?()\[\]{}|]|\.|` + escape + `|` + class
	body := `(?:(?:` + atom + `)(?:(?:` + counts + `)\??)?|[\^$]|\\[bB]|\|)*`
	for range depth {
		group := `\((?:\?:)?` + body + `\)`
		look := `\(\?<?[=!]` + body + `\)`
		body = `(?:(?:` + atom + `|` + group + `)(?:(?:` + counts + `)\??)?|` + look + `|[\^$]|\\[bB]|\|)*`
	}
	return body
}
