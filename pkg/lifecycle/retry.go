package lifecycle

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Pauses between tries of Retry.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
)

// Retry calls try until it succeeds, for something that another process has to provide:
// it may start later than this one or be away for a while. The pause between two tries
// doubles up to a limit and is jittered, so that a fleet that starts at once does not
// knock in step. What is waited for is logged once, and once more when it is there. Only
// errors that say that something is unavailable or late are tried again. Retry returns
// the context's error as soon as ctx ends.
func Retry(ctx context.Context, log *slog.Logger, what string, try func(context.Context) error) error {
	pause := backoffFirst
	for tries := 1; ; tries++ {
		err := try(ctx)
		switch {
		case err == nil && tries > 1:
			log.Info("it is there now", "what", what, "tries", tries)
			return nil
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !transient(err):
			return err
		case tries == 1:
			log.Warn("wait for something that is not there yet", "what", what, "error", err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		pause = min(2*pause, backoffMax)
	}
}

// transient reports an error that may be gone at the next try.
func transient(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.DeadlineExceeded:
		return true
	}
	return false
}
