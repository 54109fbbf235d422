package lifecycle

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Pauses between the attempts of Retry.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
)

// Retry calls try until it succeeds. It is for a dependency in another process, which may start
// later than this one or be unreachable for a while. The backoff doubles up to a limit and has
// jitter, so that many services that start together do not retry at the same moments. Retry logs
// once that it waits for the dependency, and once when that is available. It only retries after
// the codes Unavailable and DeadlineExceeded. It returns the error of ctx as soon as ctx ends.
func Retry(ctx context.Context, log *slog.Logger, what string, try func(context.Context) error) error {
	pause := backoffFirst
	for tries := 1; ; tries++ {
		err := try(ctx)
		switch {
		case err == nil && tries > 1:
			log.Info("dependency is available", "what", what, "tries", tries)
			return nil
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !transient(err):
			return err
		case tries == 1:
			log.Warn("waiting for a dependency", "what", what, "error", err)
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

// transient reports whether another attempt may succeed.
func transient(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.DeadlineExceeded:
		return true
	}
	return false
}
