package router

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/obs"
)

// Defaults and limits of resumable requests.
const (
	graceDefault   = time.Minute
	replayDefault  = 4 << 20
	maxLives       = 4096      // resumable requests of a router, with those that have ended lately
	maxClientState = 256 << 10 // bytes
	minResumeID    = 32        // characters: 128 bits in hexadecimal
	maxFrom        = 1 << 24   // as the limit of max_tokens
	openedLimit    = 250 * time.Millisecond
)

// errCanceled ends a request for which Cancel was called.
var errCanceled = fault.New(fault.Canceled, "run request: it was canceled")

// live is a resumable request on this router. The request runs in a goroutine of its own and adds its
// events here; calls read them from here, at their own pace. So the request outlives the call
// that started it, and a slow client delays nobody.
type live struct {
	requests *requests
	key      journal.Key
	grace    time.Duration // how long it runs without a reader, and is kept after its end
	limit    int           // bytes of tokens to keep
	cancel   context.CancelCauseFunc
	state    []byte         // what the client wants back from Resume; set before started
	written  sync.WaitGroup // of the scribe
	opened   chan struct{}  // closed when the journal has the beginning, or never will
	openOnce sync.Once

	mu       sync.Mutex
	started  *routerv1.Started
	loading  *routerv1.ModelLoading // the latest; not kept once it has started
	loads    int                    // reports of the loading so far
	prompt   []*routerv1.PromptTokens
	first    int // index of tokens[0]
	tokens   []*routerv1.TokenEvent
	bytes    int
	finished *routerv1.Finished
	err      error
	ended    bool
	stored   bool // it has ended, and the journal has its end or never will
	sought   bool // it is looked for in the journal and has not been found
	readers  int
	changed  chan struct{} // closed and replaced when any of these change
	alone    *time.Timer   // ends the request when it has had no reader for a while
}

// startLive runs a resumable request in a goroutine of its own. If there is one under the key already
// it returns that one, and false. If sought, run must first find it in the journal.
func (s *Service) startLive(
	key journal.Key, sought bool, run func(context.Context, *live) error,
) (*live, bool, error) {
	r := s.requests
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.lives[key]; l != nil && !l.broken() {
		return l, false, nil
	}
	if r.isDraining() || r.base.Err() != nil {
		return nil, false, errStopping
	}
	if len(r.lives) >= maxLives {
		return nil, false, fault.New(fault.Unavailable, "run request %s: %d resumable requests are kept", key.ID,
			maxLives).After(time.Second)
	}
	l := &live{
		requests: r, key: key, grace: s.cfg.Grace, limit: s.cfg.ReplayBytes, changed: make(chan struct{}),
		opened: make(chan struct{}), sought: sought,
	}
	ctx, cancel := context.WithCancelCause(auth.WithTenant(obs.WithRequestID(r.base, key.ID), key.Tenant))
	l.cancel = cancel
	r.lives[key] = l
	r.wg.Go(func() {
		defer l.change(func() { l.stored = true })
		ctx, done, err := r.begin(ctx)
		if err != nil {
			l.end(err)
			return
		}
		err = cause(ctx, run(ctx, l))
		if errors.Is(err, errStopping) {
			err = fault.Wrap(fault.Unavailable, err, "resume request %s from another router", key.ID).After(time.Second)
		}
		l.end(err)
		l.written.Wait() // so that a drain waits for the journals
		done()
	})
	return l, true, nil
}

// broken reports whether the request ended with an error after which it may be continued.
func (l *live) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended && l.err != nil && !final(l.err)
}

// change applies f and wakes the readers.
func (l *live) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// sink returns a sink that adds a request's events.
func (l *live) sink() sink {
	return sink{
		started: func(e *routerv1.Started) error {
			l.change(func() { l.started, l.loading = e, nil })
			return nil
		},
		loading: func(e *routerv1.ModelLoading) error {
			l.change(func() { l.loading, l.loads = e, l.loads+1 })
			return nil
		},
		prompt: func(e *routerv1.PromptTokens) error {
			l.change(func() { l.prompt = append(l.prompt, e) })
			return nil
		},
		token: func(e *routerv1.TokenEvent) error {
			l.change(func() { l.add(e) })
			return nil
		},
		finished: func(e *routerv1.Finished) error {
			l.change(func() { l.finished = e })
			return nil
		},
	}
}

// add appends a token. When there are more bytes of tokens than the limit, it drops the oldest quarter
// of them; a reader that still needed these gets an error. The caller holds mu.
func (l *live) add(e *routerv1.TokenEvent) {
	l.tokens = append(l.tokens, e)
	if l.bytes += tokenBytes(e); l.bytes <= l.limit {
		return
	}
	n := len(l.tokens)/4 + 1
	for _, e := range l.tokens[:n] {
		l.bytes -= tokenBytes(e)
	}
	l.first += n
	l.tokens = append([]*routerv1.TokenEvent(nil), l.tokens[n:]...)
}

// tokenBytes returns about how much memory a token takes.
func tokenBytes(e *routerv1.TokenEvent) int {
	const event, candidate = 128, 104
	n := event + len(e.GetText())
	for _, c := range e.GetTop() {
		n += candidate + len(c.GetText())
	}
	return n
}

// end records the end of the request. It is kept for a while, unless it was not found.
func (l *live) end(err error) {
	l.change(func() {
		l.ended, l.err = true, err
		if l.alone != nil {
			l.alone.Stop()
		}
	})
	l.cancel(nil)
	remove := func() {
		l.requests.mu.Lock()
		defer l.requests.mu.Unlock()
		if l.requests.lives[l.key] == l {
			delete(l.requests.lives, l.key)
		}
	}
	if l.started == nil { // written before the end only
		remove()
		return
	}
	time.AfterFunc(l.grace, remove)
}

// attach counts a reader.
func (l *live) attach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers++
	if l.alone != nil {
		l.alone.Stop()
		l.alone = nil
	}
}

// detach ends the request after the grace period if that was the last reader.
func (l *live) detach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.readers--; l.readers > 0 || l.ended {
		return
	}
	l.alone = time.AfterFunc(l.grace, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.readers == 0 {
			l.cancel(fault.New(fault.Canceled, "run request %s: it had no reader for %v", l.key.ID, l.grace))
		}
	})
}

// markOpened lets readers begin.
func (l *live) markOpened() { l.openOnce.Do(func() { close(l.opened) }) }

// awaitOpened waits until the journal has the beginning of the request, so that a client that knows the
// request can resume it. A journal that is slow delays the first event by openedLimit at most, and
// never the tokens, which are generated meanwhile.
func (l *live) awaitOpened(ctx context.Context) {
	limit := time.NewTimer(openedLimit)
	defer limit.Stop()
	select {
	case <-l.opened:
	case <-limit.C:
	case <-ctx.Done():
	}
}

// position says where a reader begins, and whether it gets the client's state.
type position struct {
	from  int
	state bool
}

// read passes the events from a position on to a sink until the request ends or ctx does.
func (l *live) read(ctx context.Context, at position, out sink) error {
	l.attach()
	defer l.detach()
	next, prompts, loads := at.from, 0, 0
	begun := false
	for {
		l.mu.Lock()
		started, prompt, changed := l.started, l.prompt, l.changed
		first, tokens := l.first, l.tokens
		ended, finished, err := l.ended, l.finished, l.err
		loading, reports := l.loading, l.loads
		l.mu.Unlock()
		if loading != nil && reports > loads && out.loading != nil {
			loads = reports
			if err := out.loading(loading); err != nil {
				return err
			}
		}
		if started != nil && !begun {
			begun = true
			l.awaitOpened(ctx)
			if at.from > int(started.GetMaxTokens()) {
				return beyond(at.from, int(started.GetMaxTokens()))
			}
			if at.state {
				started = proto.CloneOf(started)
				started.ClientState = l.state
			}
			if err := out.started(started); err != nil {
				return err
			}
		}
		if at.from == 0 && out.prompt != nil {
			for ; prompts < len(prompt); prompts++ {
				if err := out.prompt(prompt[prompts]); err != nil {
					return err
				}
			}
		}
		if next < first {
			return fault.New(fault.DataLoss, "resume request %s: token %d is no longer kept, the first is %d", l.key.ID,
				next, first)
		}
		for ; next-first < len(tokens); next++ {
			if err := out.token(tokens[next-first]); err != nil {
				return err
			}
		}
		switch {
		case ended && finished == nil:
			if err == nil {
				err = fault.New(fault.Internal, "run request %s: it ended without a finish reason", l.key.ID)
			}
			return err
		case ended && next > first+len(tokens):
			return beyond(at.from, first+len(tokens))
		case ended:
			return out.finished(finished)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func beyond(from, tokens int) error {
	return &fault.Error{Code: fault.OutOfRange, Field: "from",
		Msg: fault.New(fault.OutOfRange, "%d is beyond the end of the answer at %d", from, tokens).Error()}
}

// wait waits until the request has ended and the journal has its end, since another router would go on with it
// otherwise. It reports whether the request was known, and not only looked for.
func (l *live) wait(ctx context.Context) (known bool, err error) {
	for {
		l.mu.Lock()
		stored, known, changed := l.stored, !l.sought, l.changed
		l.mu.Unlock()
		if stored {
			return known, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return known, ctx.Err()
		}
	}
}

// final reports whether an error ends a request for good: it is the request's own fault, or it was
// canceled. After any other error the request can be continued, here or elsewhere.
func final(err error) bool {
	if errors.Is(err, errCanceled) {
		return true
	}
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.DeadlineExceeded, fault.Canceled, fault.Exhausted, fault.Unspecified:
		return false
	}
	return !errors.Is(err, errOvertaken)
}
