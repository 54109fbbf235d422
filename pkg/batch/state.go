package batch

import (
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Status is the state of a batch.
type Status string

// The states. A batch moves along
//
//	validating -> in_progress -> finalizing -> completed
//
// and leaves this path to cancelling -> cancelled, to expired, or to failed.
const (
	Validating Status = "validating"  // its input file is being read
	InProgress Status = "in_progress" // its requests run
	Finalizing Status = "finalizing"  // all have ended, and its files are being completed
	Completed  Status = "completed"
	Failed     Status = "failed"     // its input file is wrong, or it could not go on
	Cancelling Status = "cancelling" // its client has ended it, and the requests that run are being stopped
	Cancelled  Status = "cancelled"
	Expired    Status = "expired" // its time was over before all requests had ended
)

// moves are the states that may follow each state.
func moves() map[Status][]Status {
	return map[Status][]Status{
		Validating: {InProgress, Failed, Cancelling, Expired},
		InProgress: {Finalizing, Failed, Cancelling, Expired},
		Finalizing: {Completed, Failed},
		Cancelling: {Cancelled, Failed},
	}
}

// Ended reports whether nothing follows a state.
func (s Status) Ended() bool { return len(moves()[s]) == 0 }

// Window is the only completion window.
const (
	Window     = "24h"
	windowTime = 24 * time.Hour
)

// Counts says how many requests a batch has, and how many have ended.
type Counts struct {
	Total     int `json:"total"`
	Completed int `json:"completed"`
	Failed    int `json:"failed"`
}

// Problems is a list of problems as clients see it.
type Problems struct {
	Object string     `json:"object"`
	Data   []*Problem `json:"data"`
}

// Batch is a batch as clients see it. Times are in seconds since 1970.
type Batch struct {
	ID           string            `json:"id"`
	Object       string            `json:"object"`
	Endpoint     string            `json:"endpoint"`
	Errors       *Problems         `json:"errors"`
	InputFileID  string            `json:"input_file_id"`
	Window       string            `json:"completion_window"`
	Status       Status            `json:"status"`
	OutputFileID *string           `json:"output_file_id"`
	ErrorFileID  *string           `json:"error_file_id"`
	CreatedAt    int64             `json:"created_at"`
	InProgressAt *int64            `json:"in_progress_at"`
	ExpiresAt    int64             `json:"expires_at"`
	FinalizingAt *int64            `json:"finalizing_at"`
	CompletedAt  *int64            `json:"completed_at"`
	FailedAt     *int64            `json:"failed_at"`
	ExpiredAt    *int64            `json:"expired_at"`
	CancellingAt *int64            `json:"cancelling_at"`
	CancelledAt  *int64            `json:"cancelled_at"`
	Counts       Counts            `json:"request_counts"`
	Metadata     map[string]string `json:"metadata"`
}

// New returns a batch that is being validated.
func New(id, endpoint, file string, metadata map[string]string, now time.Time) *Batch {
	return &Batch{ID: id, Object: "batch", Endpoint: endpoint, InputFileID: file, Window: Window, Status: Validating,
		CreatedAt: now.Unix(), ExpiresAt: now.Add(windowTime).Unix(), Metadata: metadata}
}

// Check returns an error if a batch that was stored cannot be one.
func (b *Batch) Check() error {
	switch _, open := moves()[b.Status]; {
	case b.ID == "" || b.InputFileID == "":
		return fault.Field("id", "it or input_file_id is missing")
	case !open && !slices.Contains([]Status{Completed, Failed, Cancelled, Expired}, b.Status):
		return fault.Field("status", "unknown status %q", b.Status)
	case !slices.Contains(Endpoints(), b.Endpoint):
		return fault.Field("endpoint", "unknown endpoint %q", b.Endpoint)
	case b.Counts.Total < 0 || b.Counts.Completed < 0 || b.Counts.Failed < 0 ||
		b.Counts.Completed+b.Counts.Failed > b.Counts.Total || b.Counts.Total > MaxLines:
		return fault.Field("request_counts", "%d and %d of %d", b.Counts.Completed, b.Counts.Failed, b.Counts.Total)
	}
	return nil
}

// Expires returns when the batch's time is over.
func (b *Batch) Expires() time.Time { return time.Unix(b.ExpiresAt, 0) }

// move changes the status and notes when.
func (b *Batch) move(to Status, now time.Time) error {
	if !slices.Contains(moves()[b.Status], to) {
		return fault.New(fault.FailedPrecondition, "change batch %s from %s to %s: that is not possible", b.ID,
			b.Status, to).Because("INVALID_BATCH_STATUS")
	}
	at := now.Unix()
	b.Status = to
	for status, field := range map[Status]**int64{
		InProgress: &b.InProgressAt, Finalizing: &b.FinalizingAt, Completed: &b.CompletedAt, Failed: &b.FailedAt,
		Cancelling: &b.CancellingAt, Cancelled: &b.CancelledAt, Expired: &b.ExpiredAt,
	} {
		if status == to {
			*field = &at
		}
	}
	return nil
}

// Begin says that the input file is right and has a number of requests, which run from now on.
func (b *Batch) Begin(total int, now time.Time) error {
	if err := b.move(InProgress, now); err != nil {
		return err
	}
	b.Counts = Counts{Total: total}
	return nil
}

// Finalize says that all requests have ended.
func (b *Batch) Finalize(now time.Time) error {
	if b.Counts.Completed+b.Counts.Failed < b.Counts.Total {
		return fault.New(fault.FailedPrecondition, "finalize batch %s: %d of %d requests have ended", b.ID,
			b.Counts.Completed+b.Counts.Failed, b.Counts.Total)
	}
	return b.move(Finalizing, now)
}

// Cancel says that the client wants no more of it. It changes nothing if the client has said so before.
func (b *Batch) Cancel(now time.Time) error {
	if b.Status == Cancelling || b.Status == Cancelled {
		return nil
	}
	return b.move(Cancelling, now)
}

// End ends a batch that is finalizing or cancelling: it is completed or cancelled. The files are those of results, or
// nil.
func (b *Batch) End(output, failed *string, now time.Time) error {
	to := Completed
	if b.Status == Cancelling {
		to = Cancelled
	}
	return b.close(to, output, failed, now)
}

// Expire ends a batch whose time is over.
func (b *Batch) Expire(output, failed *string, now time.Time) error {
	return b.close(Expired, output, failed, now)
}

// Fail ends the batch because of problems.
func (b *Batch) Fail(problems []*Problem, output, failed *string, now time.Time) error {
	if err := b.close(Failed, output, failed, now); err != nil {
		return err
	}
	b.Errors = &Problems{"list", problems}
	return nil
}

func (b *Batch) close(to Status, output, failed *string, now time.Time) error {
	if err := b.move(to, now); err != nil {
		return err
	}
	b.OutputFileID, b.ErrorFileID = output, failed
	return nil
}

// Count counts a request that has ended.
func (b *Batch) Count(ok bool) {
	if ok {
		b.Counts.Completed++
		return
	}
	b.Counts.Failed++
}
