package filetest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// jsonFile is a JSON text whose values may be replaced.
type jsonFile struct {
	text []byte
	all  []jsonSpan
	main int
	// wrap makes the file from the text. A safetensors file has a length before the text and data
	// after it.
	wrap func(text []byte, edits []edit) []byte
}

type jsonSpan struct {
	from, to int
	path     string
	entry    bool // of a long list or object
}

// replacements are what a value may become: small, negative and huge numbers, numbers
// that are none, and values of other types.
var replacements = []string{
	"0", "1", "-1", "2147483647", "2147483648", "4294967295", "4294967296", "9223372036854775807",
	"9223372036854775808",
	"18446744073709551616", "1e308", "1e400", "0.5", "-0.0", "NaN", "Infinity", `"0"`, `"-1"`, "null", "true", "false",
	`""`, `"\u0000"`, `"\ud800"`, `"` + "\x80" + `"`, "[]", "[null]", "{}", `{"":{}}`, `[[[[]]]]`,
}

func (j *jsonFile) fields() (n, main int) { return len(j.all), j.main }

func (j *jsonFile) name(field int) string { return j.all[field].path }

func (j *jsonFile) values(int) int { return len(replacements) }

func (j *jsonFile) render(edits []edit) []byte {
	sorted := slices.Clone(edits)
	slices.SortFunc(sorted, func(a, b edit) int { return j.all[a.field].from - j.all[b.field].from })
	var out []byte
	at := 0
	for _, e := range sorted {
		s := j.all[e.field]
		if s.from < at {
			continue // inside what was replaced
		}
		out = append(out, j.text[at:s.from]...)
		if e.value < len(replacements) {
			out = append(out, replacements[e.value]...)
		} else {
			other := j.all[e.value-len(replacements)]
			out = append(out, j.text[other.from:other.to]...)
		}
		at = s.to
	}
	out = append(out, j.text[at:]...)
	if j.wrap != nil {
		return j.wrap(out, edits)
	}
	return out
}

// jsonScanner lists the values of a text.
type jsonScanner struct {
	jsonFile
	at int
}

// many is the number of members from which an object or array counts as long.
const many = 16

func (s *jsonScanner) skip() {
	for s.at < len(s.text) && bytes.IndexByte([]byte(" \t\r\n"), s.text[s.at]) >= 0 {
		s.at++
	}
}

func (s *jsonScanner) str() string {
	from := s.at
	for s.at++; s.text[s.at] != '"'; s.at++ {
		if s.text[s.at] == '\\' {
			s.at++
		}
	}
	s.at++
	return string(s.text[from+1 : s.at-1])
}

func (s *jsonScanner) value(path string, entry bool) {
	s.skip()
	index := len(s.all)
	s.all = append(s.all, jsonSpan{from: s.at, path: path, entry: entry})
	switch c := s.text[s.at]; c {
	case '{', '[':
		s.at++
		first := len(s.all)
		n := 0
		for {
			s.skip()
			if s.text[s.at] == '}' || s.text[s.at] == ']' {
				s.at++
				break
			}
			if s.text[s.at] == ',' {
				s.at++
				s.skip()
			}
			member := fmt.Sprint(n)
			if c == '{' {
				member = s.str()
				s.skip()
				s.at++ // the colon
			}
			s.value(path+"/"+member, entry)
			n++
		}
		if n > many {
			for i := first; i < len(s.all); i++ {
				s.all[i].entry = true
			}
		}
	case '"':
		s.str()
	default:
		for s.at < len(s.text) && bytes.IndexByte([]byte(",]} \t\r\n"), s.text[s.at]) < 0 {
			s.at++
		}
	}
	s.all[index].to = s.at
}

func parseJSON(text []byte) (*jsonFile, error) {
	if !json.Valid(text) {
		return nil, errors.New("the text is not JSON")
	}
	s := &jsonScanner{jsonFile: jsonFile{text: text}}
	s.value("", false)
	slices.SortStableFunc(s.all, func(x, y jsonSpan) int {
		switch {
		case x.entry == y.entry:
			return 0
		case y.entry:
			return -1
		}
		return 1
	})
	for s.main < len(s.all) && !s.all[s.main].entry {
		s.main++
	}
	return &s.jsonFile, nil
}

// parseSafetensors gives the header's values. The length before the header is that of
// the new one, except in every fifth mutant, where it is one of the numbers.
func parseSafetensors(file []byte) (*jsonFile, error) {
	if len(file) < 8 || binary.LittleEndian.Uint64(file) > uint64(len(file)-8) {
		return nil, errCut
	}
	n := binary.LittleEndian.Uint64(file)
	j, err := parseJSON(file[8 : 8+n])
	if err != nil {
		return nil, err
	}
	data := file[8+n:]
	j.main = len(j.all) // every tensor matters
	j.wrap = func(text []byte, edits []edit) []byte {
		length := uint64(len(text))
		if e := edits[0]; (e.field+e.value)%5 == 0 {
			all := length + uint64(len(data))
			lengths := []uint64{0, 1, ^uint64(0), 1<<63 - 1, 1 << 63, length + 1, length - 1, all, all + 1}
			length = lengths[(e.field+e.value)/5%len(lengths)]
		}
		return append(append(binary.LittleEndian.AppendUint64(nil, length), text...), data...)
	}
	return j, nil
}
