package loadtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// requestIDHeader carries the id by which a resumable request is resumed.
const requestIDHeader = "X-Request-Id"

// Pauses and number of attempts to resume a stream.
const (
	resumePause    = 20 * time.Millisecond // doubles
	resumeMaxPause = 500 * time.Millisecond
	resumeAttempts = 30
)

// newID returns an id that is hard to guess.
func newID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// resume goes on with a stream that its server lost or refused, at the next server of the list, until
// it has ended or no server has it. err is how the stream broke; what resume returns is how it ended.
func (c *client) resume(ctx context.Context, k call, s *Sample, at *reading, err error) error {
	pause := resumePause
	for attempt := range resumeAttempts {
		lost := err != nil && fault.CodeOf(err) != fault.Invalid
		full := s.Outcome == Refused && s.Code == http.StatusServiceUnavailable
		if !lost && s.Outcome != ErrorEvent && !full {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
		pause = min(2*pause, resumeMaxPause)
		s.Outcome, s.Message = "", ""
		err = c.again(ctx, k, k.others[attempt%len(k.others)], s, at)
	}
	return err
}

// again asks a server for the events after those that came.
func (c *client) again(ctx context.Context, k call, base string, s *Sample, at *reading) error {
	r, err := c.request(ctx, http.MethodGet, base+"/requests/"+k.id+"/stream", nil)
	if err != nil {
		return err
	}
	if at.lastID != "" {
		r.Header.Set("Last-Event-ID", at.lastID)
	}
	err = c.receive(r, k, s, at)
	switch {
	case err == nil && s.Code == http.StatusNoContent && at.finished():
		s.Outcome, s.Message = OK, "" // everything had come but the end
	case err == nil && s.Code == http.StatusNotFound && at.lastID == "" && s.Pieces == 0:
		// The request did not get as far as the journal: it is new to every server.
		k.base, s.Outcome, s.Message = base, "", ""
		return c.exchange(ctx, k, s, at)
	case err == nil && s.Outcome == OK:
		s.Resumed++
		s.URL = base
	}
	return err
}
