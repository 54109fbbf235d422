package auth

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Action is what an operator did or tried.
type Action struct {
	Time    time.Time `json:"time"`
	Who     string    `json:"who"` // id of a principal, or of a user of the machine
	Name    string    `json:"name,omitempty"`
	Tenant  string    `json:"tenant,omitempty"`
	From    string    `json:"from,omitempty"` // address of the caller
	What    string    `json:"what"`           // method, route or command
	Target  string    `json:"target,omitempty"`
	Result  string    `json:"result"` // ok, or the code of the error
	Request string    `json:"request,omitempty"`
}

// AuditLog writes actions, one JSON object a line. It is safe for concurrent use. A nil log writes nothing.
type AuditLog struct {
	mu   sync.Mutex
	w    io.Writer
	now  func() time.Time
	fail func(error)
}

// NewAuditLog returns a log that writes to w. fail is called when a line could not be written; nil ignores that.
func NewAuditLog(w io.Writer, now func() time.Time, fail func(error)) *AuditLog {
	return &AuditLog{w: w, now: now, fail: fail}
}

// OpenAuditLog opens a file to append to, readable by its owner. The caller closes what is returned.
func OpenAuditLog(path string) (io.WriteCloser, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "open audit log")
	}
	return f, nil
}

// maxTarget is how many bytes of a target are written. Callers choose it, those that are refused as well.
const maxTarget = 256

// Write writes an action of p, which may be nil, with the code of err as its result.
func (l *AuditLog) Write(p *Principal, a Action, err error) {
	if l == nil {
		return
	}
	a.Result = "ok"
	if err != nil {
		a.Result = fault.CodeOf(err).String()
	}
	if p != nil {
		a.Who, a.Name, a.Tenant = p.ID, p.Name, p.Tenant
	}
	if a.Who == "" {
		a.Who = "anonymous"
	}
	if len(a.Target) > maxTarget {
		a.Target = strings.ToValidUTF8(a.Target[:maxTarget], "") + "..."
	}
	a.Time = l.now().UTC()
	text, err := json.Marshal(a)
	if err == nil {
		l.mu.Lock()
		_, err = l.w.Write(append(text, '\n')) // one write, so that lines of several processes stay whole
		l.mu.Unlock()
	}
	if err != nil && l.fail != nil {
		l.fail(fault.Wrap(fault.DataLoss, err, "write audit log"))
	}
}
