package loadtest

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// maxEvent is the maximum number of bytes of a line of an event, and of the data of an event.
const maxEvent = 4 << 20

// events reads server-sent events, as the HTML standard defines them.
type events struct {
	r    *bufio.Reader
	data []byte
}

// event is one event with data.
type event struct {
	name string // of the event field; usually empty
	id   string
	data []byte // valid until the next call
}

func newEvents(r io.Reader) *events { return &events{r: bufio.NewReaderSize(r, 16<<10)} }

// next returns the next event that has data. It returns io.EOF at the end of the stream; an event that
// the stream's end cuts off is dropped, as the standard says.
func (e *events) next() (event, error) {
	var out event
	e.data = e.data[:0]
	seen := false
	for {
		line, err := e.line()
		if err != nil {
			return event{}, err
		}
		if len(line) == 0 {
			if seen {
				out.data = bytes.TrimSuffix(e.data, []byte("\n"))
				return out, nil
			}
			out = event{}
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			seen = true
			if len(e.data)+len(value) > maxEvent {
				return event{}, fault.New(fault.Invalid, "read event: more than %d bytes", maxEvent)
			}
			e.data = append(append(e.data, value...), '\n')
		case "event":
			out.name = string(value)
		case "id":
			out.id = string(value)
		case "error": // some versions of the llama.cpp server send an error object in a field of its own
			seen, out.name = true, "error"
			e.data = append(append(e.data[:0], value...), '\n')
		}
	}
}

// line returns a line without its end, which is "\n" or "\r\n". A part of a line before the end of the
// stream is not a line.
func (e *events) line() ([]byte, error) {
	line, err := e.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) { // a long line: collect it
		long := bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(long) > maxEvent {
				return nil, fault.New(fault.Invalid, "read event: a line of more than %d bytes", maxEvent)
			}
			line, err = e.r.ReadSlice('\n')
			long = append(long, line...)
		}
		line = long
	}
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")), nil
}
