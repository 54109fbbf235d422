package vocab

import (
	"strings"

	"golang.org/x/text/unicode/norm"
)

// normalizer rewrites text before it is cut. first says that the text stands at
// the very start of what is being encoded. nil changes nothing.
type normalizer func(text string, first bool) string

// hfNormalizer builds the normalizer of a tokenizer.json.
func hfNormalizer(c *hfComponent) (normalizer, error) {
	if c == nil {
		return nil, nil
	}
	const field = "tokenizer.json: normalizer"
	switch c.Type {
	case "Sequence":
		var steps []normalizer
		for i := range c.Normalizers {
			n, err := hfNormalizer(&c.Normalizers[i])
			if err != nil {
				return nil, err
			}
			if n != nil {
				steps = append(steps, n)
			}
		}
		return func(s string, first bool) string {
			for _, n := range steps {
				s = n(s, first)
			}
			return s
		}, nil
	case "NFC":
		return form(norm.NFC), nil
	case "NFD":
		return form(norm.NFD), nil
	case "NFKC":
		return form(norm.NFKC), nil
	case "NFKD":
		return form(norm.NFKD), nil
	case "Lowercase":
		return func(s string, _ bool) string { return strings.ToLower(s) }, nil
	case "Strip":
		return func(s string, _ bool) string {
			if c.StripLeft {
				s = strings.TrimLeftFunc(s, isSpace)
			}
			if c.StripRight {
				s = strings.TrimRightFunc(s, isSpace)
			}
			return s
		}, nil
	case "Prepend":
		return func(s string, _ bool) string {
			if s == "" {
				return s
			}
			return c.Prepend + s
		}, nil
	case "Replace":
		if c.Pattern.String == nil {
			return nil, unsupported(field, "replacement by a regular expression")
		}
		old := *c.Pattern.String
		if old == "" {
			return nil, malformed(field, "replacement of nothing")
		}
		return func(s string, _ bool) string { return strings.ReplaceAll(s, old, c.Content) }, nil
	default:
		return nil, unsupported(field, "type %q", c.Type)
	}
}

func form(f norm.Form) normalizer {
	return func(s string, _ bool) string { return f.String(s) }
}
