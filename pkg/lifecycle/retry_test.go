package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
)

func TestRetry_WaitsWithGrowingPausesAndSaysSoOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var pauses []time.Duration
		last := time.Now()
		err := lifecycle.Retry(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), "consul",
			func(context.Context) error {
				pauses = append(pauses, time.Since(last))
				last = time.Now()
				if len(pauses) < 12 {
					return fault.New(fault.Unavailable, "connection refused")
				}
				return nil
			})
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range pauses[1:] {
			middle := min(100*time.Millisecond<<i, 5*time.Second)
			if p < middle/2 || p >= middle*3/2 {
				t.Errorf("pause %d is %v, want about %v", i, p, middle)
			}
		}
		if n := strings.Count(log.String(), "waiting for"); n != 1 || !strings.Contains(log.String(), "tries=12") {
			t.Errorf("there are %d log lines:\n%s", n, log.String())
		}
	})
}

func TestRetry_EndsWithItsContextAndOnOtherErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		time.AfterFunc(10*time.Second, cancel)
		err := lifecycle.Retry(ctx, slog.New(slog.DiscardHandler), "nats", func(context.Context) error {
			return fault.New(fault.Unavailable, "connection refused")
		})
		if !errors.Is(err, context.Canceled) || time.Since(began) != 10*time.Second {
			t.Errorf("it ends with %v after %v", err, time.Since(began))
		}
		tries := 0
		err = lifecycle.Retry(t.Context(), slog.New(slog.DiscardHandler), "nats", func(context.Context) error {
			tries++
			return fault.New(fault.PermissionDenied, "wrong token")
		})
		if fault.CodeOf(err) != fault.PermissionDenied || tries != 1 {
			t.Errorf("%d tries end with %v", tries, err)
		}
	})
}
