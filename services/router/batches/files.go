package batches

import (
	"cmp"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	uploadTime  = 15 * time.Minute // for an upload
	uploadStall = 30 * time.Second // for a piece of one
	piece       = 64 << 10         // bytes that are copied at a time
	maxParts    = 8                // of a form
	maxField    = 256              // bytes of a field of a form
	maxName     = 255              // bytes of the name of a file
)

// uploadForm describes the form of POST /v1/files.
type uploadForm struct {
	Purpose string `json:"purpose"`
	File    string `json:"file"`
}

func (f *file) object() object {
	return object{"id": f.ID, "object": "file", "bytes": f.Bytes, "created_at": f.Created, "filename": f.Name,
		"purpose": f.Purpose, "status": "processed", "expires_at": nil}
}

// upload stores a file. Its parts may come in any order.
func (s *Service) upload(w http.ResponseWriter, r *http.Request) (any, error) {
	tenant := auth.Tenant(r.Context())
	end, err := s.store.beginUpload(tenant)
	if err != nil {
		return nil, err
	}
	defer end()
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "multipart/form-data" {
		return nil, fault.Field("body", "want multipart/form-data")
	}
	control := http.NewResponseController(w)
	limited := http.MaxBytesReader(w, r.Body, s.Limits.FileBytes+64<<10)
	r.Body = &steady{ReadCloser: limited, control: control, until: time.Now().Add(uploadTime)}
	form, err := r.MultipartReader()
	if err != nil {
		return nil, fault.Field("body", "%v", err)
	}
	f := &file{ID: newID(filePrefix), Tenant: tenant, Created: time.Now().Unix()}
	if err := s.store.take(f.Tenant, room{files: 1}); err != nil {
		return nil, err
	}
	if err := s.receive(form, f); err != nil {
		s.store.give(f.Tenant, room{1, f.Bytes})
		if gone := os.Remove(s.store.content(f.ID)); gone != nil && !errors.Is(gone, os.ErrNotExist) {
			s.Log.WarnContext(r.Context(), "remove a file that was not stored", "file", f.ID, "error", gone)
		}
		return nil, err
	}
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.Log.DebugContext(r.Context(), "clear the read deadline of an upload", "error", err) // the client has gone
	}
	return f.object(), nil
}

// steady reads a body whose client must send a piece in a while and all of it in a longer while.
type steady struct {
	io.ReadCloser
	control *http.ResponseController
	until   time.Time
}

// Read waits for the next piece.
func (s *steady) Read(p []byte) (int, error) {
	at := time.Now().Add(uploadStall)
	if at.After(s.until) {
		at = s.until
	}
	if err := s.control.SetReadDeadline(at); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return s.ReadCloser.Read(p)
}

// receive reads a form and stores the file. f.Bytes is what was written, also after an error.
func (s *Service) receive(form *multipart.Reader, f *file) error {
	given := false
	for parts := 0; ; parts++ {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return bodyError(err)
		}
		if parts == maxParts {
			return fault.Field("body", "the form has more than %d parts", maxParts)
		}
		switch part.FormName() {
		case "purpose":
			text, err := io.ReadAll(io.LimitReader(part, maxField))
			if err != nil {
				return bodyError(err)
			}
			f.Purpose = string(text)
		case "file":
			if given {
				return fault.Field("file", "is given twice")
			}
			given = true
			f.Name = fileName(part.FileName())
			if err := s.save(part, f); err != nil {
				return err
			}
		default:
			return fault.Field(cmp.Or(shown(part.FormName(), maxField), "body"), "is not supported")
		}
	}
	switch {
	case f.Purpose == "":
		return fault.Field("purpose", "is missing")
	case f.Purpose != purposeInput:
		return fault.Field("purpose", "%.40q is not supported: want %s", f.Purpose, purposeInput)
	case !given:
		return fault.Field("file", "is missing")
	}
	return s.store.putFile(f)
}

func bodyError(err error) error {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return tooLarge(large.Limit, err)
	}
	return &fault.Error{Code: fault.Invalid, Field: "body", Msg: "read the form", Err: err}
}

func tooLarge(limit int64, err error) error {
	return &fault.Error{Code: fault.Invalid, Field: "file", Reason: "FILE_TOO_LARGE", Err: err,
		Msg: "it has more than " + strconv.FormatInt(limit, 10) + " bytes"}
}

// save writes the content of a file and syncs it.
func (s *Service) save(from io.Reader, f *file) (err error) {
	to, err := os.OpenFile(s.store.content(f.ID), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return storeError(err)
	}
	defer func() {
		if closed := to.Close(); closed != nil {
			err = errors.Join(err, storeError(closed))
		}
	}()
	buf := make([]byte, piece)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if f.Bytes+int64(n) > s.Limits.FileBytes {
				return tooLarge(s.Limits.FileBytes, nil)
			}
			if err := s.store.take(f.Tenant, room{bytes: int64(n)}); err != nil {
				return err
			}
			f.Bytes += int64(n)
			if _, err := to.Write(buf[:n]); err != nil {
				return storeError(err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return bodyError(err)
		}
	}
	if err := to.Sync(); err != nil {
		return storeError(err)
	}
	return nil
}

// fileName returns a name to show. It is never part of a path.
func fileName(text string) string {
	name := shown(path.Base(strings.ReplaceAll(text, `\`, "/")), maxName)
	if name == "" || name == "." || name == "/" {
		return "file.jsonl"
	}
	return name
}

// shown returns at most so many bytes of a text, without characters that are not printed.
func shown(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}

func (s *Service) listFiles(_ http.ResponseWriter, r *http.Request) (any, error) {
	query := r.URL.Query()
	all := s.store.listFiles(auth.Tenant(r.Context()))
	if purpose := query.Get("purpose"); purpose != "" {
		var some []*file
		for _, f := range all {
			if f.Purpose == purpose {
				some = append(some, f)
			}
		}
		all = some
	}
	return pageOf(all, func(f *file) string { return f.ID }, func(f *file) any { return f.object() }, query, 10_000,
		10_000)
}

func (s *Service) getFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	f, err := s.store.file(auth.Tenant(r.Context()), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return f.object(), nil
}

// getContent sends a file. A client that does not read a piece in time is disconnected, and notices by the length that
// the rest is missing.
func (s *Service) getContent(w http.ResponseWriter, r *http.Request) (any, error) {
	f, err := s.store.file(auth.Tenant(r.Context()), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	from, err := os.Open(s.store.content(f.ID))
	if err != nil {
		return nil, storeError(err)
	}
	defer func() { _ = from.Close() }() // it was only read
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(f.Bytes, 10))
	h.Set("Content-Disposition", "attachment")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	control, buf := http.NewResponseController(w), make([]byte, piece)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if err := control.SetWriteDeadline(time.Now().Add(s.WriteTimeout)); err != nil &&
				!errors.Is(err, http.ErrNotSupported) {
				return nil, nil // the client has gone
			}
			if _, err := w.Write(buf[:n]); err != nil {
				return nil, nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			s.Log.ErrorContext(r.Context(), "read a file of a batch", "file", f.ID, "error", err)
			return nil, nil
		}
	}
}

func (s *Service) deleteFile(_ http.ResponseWriter, r *http.Request) (any, error) {
	id := r.PathValue("id")
	if err := s.store.removeFile(auth.Tenant(r.Context()), id); err != nil {
		return nil, err
	}
	return object{"id": id, "object": "file", "deleted": true}, nil
}
