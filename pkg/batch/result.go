package batch

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// The codes of requests that have not run.
const (
	CodeExpired   = "batch_expired"
	CodeCancelled = "batch_cancelled"
)

// Result is a line of an output or error file: how a request has ended.
type Result struct {
	ID       string    `json:"id"`
	CustomID string    `json:"custom_id"`
	Response *Response `json:"response"` // null for a request that has not run
	Error    *Failure  `json:"error"`    // null for a request that has run, however it ended
}

// Response is what the API has answered.
type Response struct {
	StatusCode int             `json:"status_code"`
	RequestID  string          `json:"request_id"`
	Body       json.RawMessage `json:"body"`
}

// Failure is why a request has not run.
type Failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// OK reports whether the request has succeeded: then the result belongs to the output file, else to the error file.
func (r *Result) OK() bool { return r.Response != nil && r.Response.StatusCode < 300 }

// Line returns the result as a line of JSON, with its newline.
func (r *Result) Line() ([]byte, error) {
	text, err := json.Marshal(r) // it escapes what some readers take for the end of a line
	if err != nil {
		return nil, fmt.Errorf("write the result of %q as JSON: %w", r.CustomID, err)
	}
	return append(text, '\n'), nil
}

// MaxResult is the maximum length of a result in bytes.
const MaxResult = 64 << 20

// ReadResults calls found with the custom id of each result of a file, and returns the length of the lines that it has
// read. A last line without a newline is not complete, and the caller cuts it off. The error names a line that is
// complete and wrong.
func ReadResults(r io.Reader, found func(customID string)) (length int64, err error) {
	from := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	for n := 1; ; n++ {
		line = line[:0]
		for {
			piece, err := from.ReadSlice('\n')
			if line = append(line, piece...); len(line) > MaxResult {
				return length, fmt.Errorf("read result %d: it has more than %d bytes", n, MaxResult)
			}
			if err == nil {
				break
			}
			if errors.Is(err, io.EOF) {
				return length, nil
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				return length, err
			}
		}
		var result struct {
			CustomID string `json:"custom_id"`
		}
		if err := json.Unmarshal(line, &result); err != nil {
			return length, fmt.Errorf("read result %d: %w", n, err)
		}
		if result.CustomID == "" {
			return length, fmt.Errorf("read result %d: it has no custom_id", n)
		}
		length += int64(len(line))
		found(result.CustomID)
	}
}
