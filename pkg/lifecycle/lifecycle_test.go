package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/lifecycle"
)

func TestMain(m *testing.M) { leak.Main(m) }

// trace records events in their order.
type trace struct {
	mu     sync.Mutex
	events []string
}

func (tr *trace) add(event string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.events = append(tr.events, event)
}

// part returns a part that becomes ready after one second and runs until it is stopped.
func (tr *trace) part(name string) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(ctx context.Context, ready func()) error {
		tr.add("start " + name)
		time.Sleep(time.Second) // virtual
		tr.add("ready " + name)
		ready()
		<-ctx.Done()
		tr.add("stop " + name)
		return ctx.Err()
	}}
}

func (tr *trace) want(t *testing.T, events ...string) {
	t.Helper()
	if !slices.Equal(tr.events, events) {
		t.Errorf("got %q, want %q", tr.events, events)
	}
}

func TestRun_StartsInOrderAndStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr trace
		ctx, cancel := context.WithCancel(t.Context())
		err := lifecycle.Run(ctx, func() {
			tr.add("all ready")
			cancel()
		}, tr.part("a"), tr.part("b"))
		if err != nil {
			t.Error(err)
		}
		tr.want(t, "start a", "ready a", "start b", "ready b", "all ready", "stop b", "stop a")
	})
}

func TestRun_FirstFailureStopsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr trace
		cause := fault.New(fault.Unavailable, "lose the disk")
		b := lifecycle.Part{Name: "b", Run: func(_ context.Context, ready func()) error {
			ready()
			time.Sleep(time.Minute)
			return cause
		}}
		err := lifecycle.Run(t.Context(), nil, tr.part("a"), b, tr.part("c"))
		if !errors.Is(err, cause) || fault.CodeOf(err) != fault.Unavailable ||
			!strings.Contains(err.Error(), "run b: ") {
			t.Errorf("got %v", err)
		}
		tr.want(t, "start a", "ready a", "start c", "ready c", "stop c", "stop a")
	})
}

func TestRun_PartThatFailsToStartKeepsTheNextFromStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr trace
		bad := lifecycle.Part{Name: "bad", Run: func(context.Context, func()) error { return errors.New("odd") }}
		err := lifecycle.Run(t.Context(), func() { t.Error("ready was called after a part had failed") }, tr.part("a"),
			bad, tr.part("c"))
		if err == nil || !strings.Contains(err.Error(), "run bad: odd") {
			t.Errorf("got %v", err)
		}
		tr.want(t, "start a", "ready a", "stop a")
	})
}

func TestRun_EarlierPartThatFailsEndsTheWaitForALaterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		early := lifecycle.Part{Name: "early", Run: func(_ context.Context, ready func()) error {
			ready()
			time.Sleep(time.Second)
			return errors.New("odd")
		}}
		late := lifecycle.Part{Name: "late", Run: func(ctx context.Context, _ func()) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		start := time.Now()
		if err := lifecycle.Run(t.Context(), nil, early, late); err == nil || !strings.Contains(err.Error(), "early") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v, want 1s", took)
		}
	})
}

func TestRun_ReturnOfNilStopsTheRestWithoutAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr trace
		done := lifecycle.Part{Name: "done", Run: func(_ context.Context, ready func()) error {
			ready()
			return nil
		}}
		if err := lifecycle.Run(t.Context(), nil, tr.part("a"), done); err != nil {
			t.Error(err)
		}
		tr.want(t, "start a", "ready a", "stop a")
	})
}

func TestRun_NamesThePartThatIsNotReadyInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := lifecycle.Part{Name: "slow", StartLimit: time.Second, Run: func(ctx context.Context, _ func()) error {
			<-ctx.Done()
			return nil
		}}
		err := lifecycle.Run(t.Context(), nil, slow)
		if fault.CodeOf(err) != fault.DeadlineExceeded || !strings.Contains(err.Error(), "start slow: ") {
			t.Errorf("got %v", err)
		}
	})
}

func TestRun_LeavesBehindAndNamesThePartThatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr trace
		release := make(chan struct{})
		stuck := lifecycle.Part{Name: "stuck", StopLimit: time.Second,
			Run: func(_ context.Context, ready func()) error {
				ready()
				<-release
				return nil
			}}
		ctx, cancel := context.WithCancel(t.Context())
		err := lifecycle.Run(ctx, cancel, tr.part("a"), stuck)
		if fault.CodeOf(err) != fault.DeadlineExceeded || !strings.Contains(err.Error(), "stop stuck: ") {
			t.Errorf("got %v", err)
		}
		tr.want(t, "start a", "ready a", "stop a")
		close(release)
	})
}

func TestRun_CancellationNobodyAskedForIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lifecycle.Part{Name: "p", Run: func(context.Context, func()) error { return context.Canceled }}
		if err := lifecycle.Run(t.Context(), nil, p); fault.CodeOf(err) != fault.Canceled {
			t.Errorf("got %v", err)
		}
	})
}
