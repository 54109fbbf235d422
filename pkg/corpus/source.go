package corpus

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	longText   = 1 << 20  // bytes of a text file that are read at once; longer ones are streamed
	maxLine    = 64 << 20 // bytes of a line
	zstdMemory = 256 << 20
)

// InputError reports a document that cannot be read.
type InputError struct {
	File string
	Line int64 // from 1; 0 for a whole file
	Msg  string
	Err  error
}

// Error names the file and the line.
func (e *InputError) Error() string {
	at := e.File
	if e.Line > 0 {
		at = fmt.Sprintf("%s line %d", e.File, e.Line)
	}
	if e.Err != nil {
		return fmt.Sprintf("read %s: %s: %v", at, e.Msg, e.Err)
	}
	return fmt.Sprintf("read %s: %s", at, e.Msg)
}

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }

// FaultCode returns Invalid.
func (e *InputError) FaultCode() fault.Code { return fault.Invalid }

// Input is a file with documents.
type Input struct {
	Path  string
	Bytes int64 // of the file
	Time  int64 // of its last change, in nanoseconds
	lines bool  // of JSON
}

// FindInputs lists the files of paths. In folders, at any depth, these are the files whose names end with .txt,
// .text, .md, .jsonl or .ndjson, and perhaps .gz or .zst, in the order of their names. A path that is a file is
// text unless its name says JSON lines.
func FindInputs(paths []string) ([]Input, error) {
	var out []Input
	add := func(path string, info fs.FileInfo) {
		out = append(out, Input{Path: path, Bytes: info.Size(), Time: info.ModTime().UnixNano(),
			lines: slices.Contains([]string{".jsonl", ".ndjson"}, extension(path))})
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "read input")
		}
		if info.Mode().IsRegular() {
			add(path, info)
			continue
		}
		if !info.IsDir() {
			return nil, fault.Field("input", "%s is neither a file nor a folder", path)
		}
		before := len(out)
		err = filepath.WalkDir(path, func(at string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() ||
				!slices.Contains([]string{".txt", ".text", ".md", ".jsonl", ".ndjson"}, extension(at)) {
				return err
			}
			info, err := e.Info()
			if err == nil {
				add(at, info)
			}
			return err
		})
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "read input")
		}
		if len(out) == before {
			return nil, fault.Field("input", "folder %s has no .txt, .text, .md, .jsonl or .ndjson files", path)
		}
	}
	if len(out) == 0 {
		return nil, fault.Field("input", "want one or more files or folders")
	}
	return out, nil
}

// extension returns the extension of a path in lower case, without that of a compression.
func extension(path string) string {
	name := strings.ToLower(filepath.Base(path))
	for _, packed := range []string{".gz", ".zst"} {
		name = strings.TrimSuffix(name, packed)
	}
	return filepath.Ext(name)
}

// open returns the contents of an input, decompressed, from a byte on.
func (in *Input) open(from int64) (io.ReadCloser, error) {
	f, err := os.Open(in.Path)
	if err != nil {
		return nil, err
	}
	r := &reader{Reader: f, close: []func() error{f.Close}}
	switch strings.ToLower(filepath.Ext(in.Path)) {
	case ".gz":
		z, err := gzip.NewReader(bufio.NewReaderSize(f, 1<<16))
		if err != nil {
			return nil, errors.Join(&InputError{File: in.Path, Msg: "decompress", Err: err}, f.Close())
		}
		r.Reader = z
	case ".zst":
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(zstdMemory))
		if err != nil {
			return nil, errors.Join(&InputError{File: in.Path, Msg: "decompress", Err: err}, f.Close())
		}
		r.Reader, r.close = z, append(r.close, func() error { z.Close(); return nil })
	default:
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return r, nil
	}
	if _, err := io.CopyN(io.Discard, r, from); err != nil {
		return nil, errors.Join(&InputError{File: in.Path, Msg: "decompress", Err: err}, r.Close())
	}
	return r, nil
}

type reader struct {
	io.Reader
	close []func() error
}

// Close closes the decompressor and the file.
func (r *reader) Close() error {
	var errs []error
	for _, c := range slices.Backward(r.close) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// position says how far the inputs have been read.
type position struct {
	Input   int     `json:"input"`
	Offset  int64   `json:"offset"` // in the decompressed input
	Line    int64   `json:"line"`   // lines before the offset
	Skipped Skipped `json:"skipped"`
}

// document is a text. A long one is not read yet.
type document struct {
	text  string
	long  *Input // the whole file is the text
	bytes int64  // of the text
	next  position
}

// source reads documents in order.
type source struct {
	inputs []Input
	o      Options
	at     position
	r      *bufio.Reader
	file   io.Closer
}

// next returns the next document, or io.EOF.
func (s *source) next(ctx context.Context) (*document, error) {
	for ctx.Err() == nil {
		if s.at.Input == len(s.inputs) {
			return nil, io.EOF
		}
		in := &s.inputs[s.at.Input]
		var d *document
		var err error
		if in.lines || s.o.Lines {
			d, err = s.line(in)
		} else {
			d, err = s.whole(in)
		}
		var bad *InputError
		switch {
		case errors.As(err, &bad) && s.o.Skip && bad.Err == nil:
			continue // it has been counted
		case err != nil:
			return nil, err
		case d != nil:
			d.next = s.at
			return d, nil
		}
	}
	return nil, context.Cause(ctx)
}

// advance goes on with the next input.
func (s *source) advance() {
	s.at = position{Input: s.at.Input + 1, Skipped: s.at.Skipped}
}

// close closes the current input.
func (s *source) close() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file, s.r = nil, nil
	return err
}

// bad counts a document that is left out, and returns what is wrong with it.
func (s *source) bad(in *Input, count *int64, format string, args ...any) error {
	*count++
	return &InputError{File: in.Path, Line: s.at.Line, Msg: fmt.Sprintf(format, args...)}
}

// whole returns a file as one document.
func (s *source) whole(in *Input) (*document, error) {
	f, err := in.open(0)
	if err != nil {
		return nil, err
	}
	d, err := s.readWhole(in, f)
	if err := errors.Join(err, f.Close()); err != nil {
		var bad *InputError
		if errors.As(err, &bad) {
			s.advance()
		}
		return nil, err
	}
	s.advance()
	return d, nil
}

func (s *source) readWhole(in *Input, f io.Reader) (*document, error) {
	text, err := io.ReadAll(io.LimitReader(f, longText+1))
	if err != nil {
		return nil, &InputError{File: in.Path, Msg: "read", Err: err}
	}
	if len(text) == 0 {
		return nil, s.bad(in, &s.at.Skipped.Empty, "the document is empty")
	}
	// A long text is read once to check it, so that the workers meet no text that is left out later.
	check := &utf8Checker{}
	n := int64(len(text))
	if _, err := check.Write(text); err == nil && n > longText {
		var more int64
		more, err = io.Copy(check, f)
		n += more
		if err != nil && !errors.Is(err, errNotUTF8) {
			return nil, &InputError{File: in.Path, Msg: "read", Err: err}
		}
	}
	if !check.valid() {
		return nil, s.bad(in, &s.at.Skipped.NotUTF8, "byte %d: not UTF-8", check.at)
	}
	if n > longText {
		return &document{long: in, bytes: n}, nil
	}
	return &document{text: string(text), bytes: n}, nil
}

// errNotUTF8 ends a copy to a utf8Checker.
var errNotUTF8 = errors.New("not UTF-8")

// utf8Checker is a writer that checks text which is cut anywhere.
type utf8Checker struct {
	rest []byte // the beginning of a character
	at   int64  // bytes that are valid
	bad  bool
}

// Write checks more text.
func (u *utf8Checker) Write(text []byte) (int, error) {
	n := len(text)
	if len(u.rest) > 0 {
		text = append(u.rest, text...)
	}
	for len(text) > 0 && utf8.FullRune(text) {
		whole := len(text)
		for k := 1; k < utf8.UTFMax && k <= len(text); k++ {
			if utf8.RuneStart(text[len(text)-k]) {
				if !utf8.FullRune(text[len(text)-k:]) {
					whole -= k
				}
				break
			}
		}
		if !utf8.Valid(text[:whole]) {
			for r, size := utf8.DecodeRune(text); r != utf8.RuneError || size > 1; r, size = utf8.DecodeRune(text) {
				text, u.at = text[size:], u.at+int64(size)
			}
			u.bad = true
			return 0, errNotUTF8
		}
		u.at += int64(whole)
		text = text[whole:]
	}
	u.rest = bytes.Clone(text)
	return n, nil
}

// valid reports whether all text was valid.
func (u *utf8Checker) valid() bool { return !u.bad && len(u.rest) == 0 }

// line returns the document of the next line, or nil if the line is blank or the input has ended.
func (s *source) line(in *Input) (*document, error) {
	if s.r == nil {
		f, err := in.open(s.at.Offset)
		if err != nil {
			return nil, err
		}
		s.file, s.r = f, bufio.NewReaderSize(f, 1<<16)
	}
	line, err := s.readLine()
	switch {
	case errors.Is(err, io.EOF) && len(line) == 0:
		err := s.close()
		s.advance()
		return nil, err
	case err != nil && !errors.Is(err, io.EOF):
		return nil, &InputError{File: in.Path, Line: s.at.Line + 1, Msg: "read", Err: err}
	}
	s.at.Line++
	s.at.Offset += int64(len(line))
	text := bytes.TrimRight(line, "\r\n")
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	if !utf8.Valid(text) {
		return nil, s.bad(in, &s.at.Skipped.NotUTF8, "not UTF-8")
	}
	if !in.lines {
		return &document{text: string(text), bytes: int64(len(text))}, nil
	}
	return s.parse(in, text)
}

// parse returns the text of a line of JSON.
func (s *source) parse(in *Input, line []byte) (*document, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(line, &object); err != nil {
		return nil, s.bad(in, &s.at.Skipped.NotJSON, "%v", err)
	}
	raw, ok := object[s.o.Field]
	var text *string
	if !ok || json.Unmarshal(raw, &text) != nil || text == nil {
		return nil, s.bad(in, &s.at.Skipped.NoField, "no text in field %q", s.o.Field)
	}
	if *text == "" {
		return nil, s.bad(in, &s.at.Skipped.Empty, "the document is empty")
	}
	return &document{text: *text, bytes: int64(len(*text))}, nil
}

// readLine reads a line with its end.
func (s *source) readLine() ([]byte, error) {
	var line []byte
	for {
		part, err := s.r.ReadSlice('\n')
		if len(line) == 0 && err == nil {
			return part, nil
		}
		line = append(line, part...)
		if len(line) > maxLine {
			return nil, fmt.Errorf("the line has more than %d bytes", maxLine)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}
