// Package doctor looks at a machine before Lamina runs on it: ports, certificates, the clock, Consul, NATS, the
// processor and memory. Each check gives one or more findings, and each finding that is not well says what to do next.
package doctor

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Status is how a finding is rated.
type Status string

// The ratings. Only Fail makes the program exit with 1.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Finding is what a check has found out.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Next   string `json:"next,omitempty"` // what to do; empty for ok
}

// Check looks at one thing.
type Check struct {
	Name string
	Run  func(context.Context) []Finding
}

// Run runs the checks one after the other, each for the given time at most, and passes on the findings.
func Run(
	ctx context.Context, limit time.Duration, checks []Check, report func(Finding) error,
) (worst Status, err error) {
	worst = OK
	for _, c := range checks {
		for _, f := range run(ctx, limit, c) {
			f.Check = c.Name
			if f.Status == Fail || f.Status == Warn && worst == OK {
				worst = f.Status
			}
			if err := report(f); err != nil {
				return worst, err
			}
		}
	}
	return worst, ctx.Err()
}

func run(ctx context.Context, limit time.Duration, c Check) []Finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return c.Run(ctx)
}

// Print writes a finding as a line, and what to do as a second one.
func Print(w io.Writer, f Finding) error {
	if _, err := fmt.Fprintf(w, "%-4s  %-12s  %s\n", f.Status, f.Check, f.Detail); err != nil {
		return err
	}
	if f.Next == "" {
		return nil
	}
	_, err := fmt.Fprintf(w, "%20s> %s\n", "", f.Next)
	return err
}

func ok(format string, args ...any) Finding {
	return Finding{Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(next, format string, args ...any) Finding {
	return Finding{Status: Warn, Next: next, Detail: fmt.Sprintf(format, args...)}
}

func fail(next, format string, args ...any) Finding {
	return Finding{Status: Fail, Next: next, Detail: fmt.Sprintf(format, args...)}
}
