package batch

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// The limits of an input file.
const (
	MaxLines    = 50_000
	MaxLine     = 4<<20 + 4<<10 // bytes: a body has 4 MiB at most
	MaxCustomID = 512           // bytes
	maxProblems = 100           // that are listed
)

// Endpoints lists the paths that the requests of a batch may be for.
func Endpoints() []string {
	return []string{"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}
}

// The codes of problems.
const (
	CodeJSON      = "invalid_json_line"
	CodeRequest   = "invalid_request"
	CodeMissing   = "missing_required_parameter"
	CodeMethod    = "invalid_method"
	CodeURL       = "invalid_url"
	CodeDuplicate = "duplicate_custom_id"
	CodeLong      = "line_too_long"
	CodeEmpty     = "empty_file"
	CodeMany      = "too_many_requests_in_file"
)

// Problem is why a batch cannot run: what is wrong with a line of its input file, or with all of it.
type Problem struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Param   *string `json:"param"` // the field of the line at fault; null if none is
	Line    *int    `json:"line"`  // from 1 on; null if no line is at fault
}

// Error names the line, the field and what is wrong.
func (p *Problem) Error() string {
	text := p.Message
	if p.Param != nil {
		text = *p.Param + ": " + text
	}
	if p.Line != nil {
		text = fmt.Sprintf("line %d: %s", *p.Line, text)
	}
	return text
}

func problem(code, param, format string, args ...any) *Problem {
	p := &Problem{Code: code, Message: fmt.Sprintf(format, args...)}
	if param != "" {
		p.Param = &param
	}
	return p
}

// Line is one request.
type Line struct {
	CustomID string
	Body     json.RawMessage // an object; a copy
}

// Key stands for a custom id where many are kept in memory.
type Key [16]byte

// KeyOf returns the key of a custom id. Two ids have the same one only if somebody breaks SHA-256.
func KeyOf(customID string) Key {
	sum := sha256.Sum256([]byte(customID))
	return Key(sum[:16])
}

// ParseLine reads a line whose request must be for an endpoint. It returns a *Problem without the number of the line.
func ParseLine(text []byte, endpoint string) (Line, error) {
	var in struct {
		CustomID *string         `json:"custom_id"`
		Method   *string         `json:"method"`
		URL      *string         `json:"url"`
		Body     json.RawMessage `json:"body"`
	}
	if !utf8.Valid(text) {
		return Line{}, problem(CodeJSON, "", "want UTF-8")
	}
	if err := json.Unmarshal(text, &in); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return Line{}, problem(CodeRequest, kind.Field, "want a string, got %s", kind.Value)
		}
		return Line{}, problem(CodeJSON, "", "want a JSON object: %v", err)
	}
	for _, f := range []struct {
		name  string
		given bool
	}{{"custom_id", in.CustomID != nil}, {"method", in.Method != nil}, {"url", in.URL != nil},
		{"body", len(in.Body) > 0}} {
		if !f.given {
			return Line{}, problem(CodeMissing, f.name, "is missing")
		}
	}
	switch {
	case *in.CustomID == "" || len(*in.CustomID) > MaxCustomID:
		return Line{}, problem(CodeRequest, "custom_id", "%d bytes are not within 1..%d", len(*in.CustomID),
			MaxCustomID)
	case *in.Method != "POST":
		return Line{}, problem(CodeMethod, "method", "want POST, got %.20q", *in.Method)
	case *in.URL != endpoint:
		return Line{}, problem(CodeURL, "url", "want %s, the endpoint of the batch, got %.80q", endpoint, *in.URL)
	case in.Body[0] != '{':
		return Line{}, problem(CodeRequest, "body", "want an object")
	}
	var body struct {
		Stream     bool `json:"stream"`
		Resumable  bool `json:"resumable"`
		Background bool `json:"background"`
	}
	_ = json.Unmarshal(in.Body, &body) // fields of another type are the API's to refuse
	for _, f := range []struct {
		name string
		on   bool
	}{{"stream", body.Stream}, {"resumable", body.Resumable}, {"background", body.Background}} {
		if f.on {
			return Line{}, problem(CodeRequest, "body."+f.name, "is not supported in a batch")
		}
	}
	return Line{CustomID: *in.CustomID, Body: in.Body}, nil
}

// Place is where a line stands in its file.
type Place struct {
	Number int   // from 1 on
	At     int64 // its offset
	Bytes  int   // its length with what ends it
}

// Lines reads the lines of a file one by one. Blank lines count and are skipped.
type Lines struct {
	from *bufio.Reader
	most int // bytes of a line
	next Place
	buf  []byte
}

// keptBuffer is the largest buffer that Lines keeps between two lines.
const keptBuffer = 64 << 10

// NewLines returns the lines of an input file.
func NewLines(r io.Reader) *Lines {
	return &Lines{from: bufio.NewReaderSize(r, keptBuffer), most: MaxLine}
}

// Next returns where the next line stands, and its text, which is valid until the next call. At the end it returns
// io.EOF, and a *Problem for a line that is too long, after which there are no more. It keeps no long text itself, so
// a caller that drops one has the memory back at once.
func (l *Lines) Next() (Place, []byte, error) {
	for {
		l.buf = l.buf[:0]
		l.next.At, l.next.Bytes = l.next.At+int64(l.next.Bytes), 0
		l.next.Number++
		for {
			piece, err := l.from.ReadSlice('\n')
			l.buf = append(l.buf, piece...)
			if len(bytes.TrimSuffix(bytes.TrimSuffix(l.buf, []byte("\n")), []byte("\r"))) > l.most {
				n, p := l.next.Number, problem(CodeLong, "", "it has more than %d bytes", l.most)
				p.Line = &n
				return l.next, nil, p
			}
			if err == nil {
				break
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if !errors.Is(err, io.EOF) || len(bytes.TrimSpace(l.buf)) == 0 {
				return l.next, nil, err
			}
			break
		}
		l.next.Bytes = len(l.buf)
		text := bytes.TrimSpace(l.buf)
		if cap(l.buf) > keptBuffer {
			l.buf = nil
		}
		if len(text) > 0 {
			return l.next, text, nil
		}
	}
}

// Check reads an input file whose requests must be for an endpoint, and returns how many it has. If something is wrong
// with it, it returns the first problems instead. err is that of the reader.
func Check(r io.Reader, endpoint string) (total int, problems []*Problem, err error) {
	lines, first := NewLines(r), map[Key]int{}
	for len(problems) < maxProblems {
		place, text, err := lines.Next()
		n := place.Number
		var wrong *Problem
		switch {
		case errors.Is(err, io.EOF):
			if total == 0 && len(problems) == 0 {
				problems = append(problems, problem(CodeEmpty, "", "the file has no requests"))
			}
			return total, problems, nil
		case errors.As(err, &wrong):
			return total, append(problems, wrong), nil
		case err != nil:
			return total, problems, err
		}
		if total++; total > MaxLines {
			return total, append(problems, problem(CodeMany, "", "the file has more than %d requests", MaxLines)), nil
		}
		line, err := ParseLine(text, endpoint)
		if errors.As(err, &wrong) {
			wrong.Line = &n
			problems = append(problems, wrong)
			continue
		}
		key := KeyOf(line.CustomID)
		if before, known := first[key]; known {
			wrong = problem(CodeDuplicate, "custom_id", "line %d has the same", before)
			wrong.Line = &n
			problems = append(problems, wrong)
			continue
		}
		first[key] = n
	}
	return total, problems, nil
}

// CheckEndpoint returns an error unless batches may use an endpoint.
func CheckEndpoint(path string) error {
	if slices.Contains(Endpoints(), path) {
		return nil
	}
	return fault.Field("endpoint", "%.80q is not supported: want %s", path, strings.Join(Endpoints(), ", "))
}
