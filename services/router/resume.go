package router

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	journalv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/journal/v1"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/obs"
	"github.com/lamina-mesh/lamina/pkg/obs/trace"
)

// encoder encodes the prompt of a request.
type encoder = func(context.Context, tokenizerv1.TokenizerServiceClient) ([]uint32, error)

// launch runs a request: in the goroutine of its call, or if it is resumable in one of its own that the
// call reads from.
func (q *request) launch(ctx context.Context, resumable bool, state []byte, encode encoder) error {
	r := q.service.requests
	if !resumable {
		if len(state) > 0 {
			return fault.Field("client_state", "requires resumable")
		}
		ctx, done, err := r.begin(ctx)
		if err != nil {
			return err
		}
		defer done()
		return cause(ctx, q.run(ctx, encode))
	}
	switch {
	case q.sampling.GetChoices() > 1:
		return fault.Field("resumable", "cannot be combined with several choices")
	case q.echo.logprobs || q.echo.only:
		return fault.Field("resumable", "cannot be combined with prompt_logprobs or prompt_only")
	case len(state) > maxClientState:
		return fault.Field("client_state", "%d bytes are more than %d", len(state), maxClientState)
	}
	call, id := ctx, obs.RequestID(ctx)
	if id == "" {
		id = obs.NewRequestID()
	}
	if len(id) < minResumeID {
		return fault.Field(
			obs.RequestIDHeader,
			"%d characters are fewer than %d: anyone who knows the id of a resumable "+
				"request can read it",
			len(id),
			minResumeID,
		)
	}
	client, caller := q.sink, auth.From(ctx)
	l, own, err := q.service.startLive(journal.Key{Tenant: auth.Tenant(ctx), ID: id}, false,
		func(ctx context.Context, l *live) error {
			q.sink, q.live, l.state = l.sink(), l, state
			ctx = obs.WithSessionID(auth.WithPrincipal(ctx, caller), obs.SessionID(call))
			return q.run(trace.Detach(ctx, call), encode)
		})
	if err != nil {
		return err
	}
	if !own {
		return fault.New(fault.AlreadyExists, "run request %s: the id is in use", id)
	}
	return l.read(ctx, position{}, client)
}

// opened starts the journal of a resumable request once everything that determines its answer is known.
func (q *request) opened() {
	q.started.MaxTokens = q.maxTokens
	if q.echo.only {
		q.started.MaxTokens = 0
	}
	if q.live == nil {
		return
	}
	q.started.Resumable = true
	q.service.write(newScribe(q.service, q.live, q.openRecord(q.live)))
}

// write starts a scribe if there is a journal.
func (s *Service) write(w *scribe) {
	if s.cfg.Journal == nil {
		w.live.markOpened()
		return
	}
	// It does not end with the request, whose last tokens and end it still has to write.
	w.live.written.Go(func() { w.run(s.requests.base) })
}

// Resume sends the events of a resumable request.
func (s *Service) Resume(r *routerv1.ResumeRequest, stream grpc.ServerStreamingServer[routerv1.ResumeResponse]) error {
	out := newOutbox(s.cfg.ReadLimit, stream.Send)
	return out.end(s.resume(stream.Context(), r, out.send))
}

func (s *Service) resume(
	ctx context.Context, r *routerv1.ResumeRequest, send func(*routerv1.ResumeResponse) error,
) (err error) {
	defer func() { s.m.resumed.WithLabelValues(endLabel(err)).Inc() }()
	if r.GetFrom() > maxFrom {
		return fault.Field("from", "%d is more than %d", r.GetFrom(), maxFrom)
	}
	key, err := requestKey(ctx, r.GetRequestId())
	if err != nil {
		return err
	}
	l, _, err := s.startLive(key, true, func(own context.Context, l *live) error {
		return s.takeOver(trace.Detach(own, ctx), l)
	})
	if err != nil {
		return err
	}
	return l.read(ctx, position{from: int(r.GetFrom()), state: true}, sink{
		started: func(e *routerv1.Started) error {
			return send(&routerv1.ResumeResponse{Event: &routerv1.ResumeResponse_Started{Started: e}})
		},
		prompt: func(e *routerv1.PromptTokens) error {
			return send(&routerv1.ResumeResponse{Event: &routerv1.ResumeResponse_Prompt{Prompt: e}})
		},
		token: func(e *routerv1.TokenEvent) error {
			return send(&routerv1.ResumeResponse{Event: &routerv1.ResumeResponse_Token{Token: e}})
		},
		finished: func(e *routerv1.Finished) error {
			return send(&routerv1.ResumeResponse{Event: &routerv1.ResumeResponse_Finished{Finished: e}})
		},
		loading: func(e *routerv1.ModelLoading) error {
			return send(&routerv1.ResumeResponse{Event: &routerv1.ResumeResponse_Loading{Loading: e}})
		},
	})
}

func requestKey(ctx context.Context, id string) (journal.Key, error) {
	if !obs.ValidRequestID(id) {
		return journal.Key{}, fault.Field("request_id", "want 1 to 128 letters, digits and -_.:/+=@")
	}
	return journal.Key{Tenant: auth.Tenant(ctx), ID: id}, nil
}

// journaled reads what the journal knows about a request.
func (s *Service) journaled(ctx context.Context, key journal.Key) (*requestLog, error) {
	if s.cfg.Journal == nil || len(key.ID) < minResumeID {
		return nil, unknownRequest(key)
	}
	ctx, cancel := context.WithTimeout(ctx, journalPatience)
	defer cancel()
	records, err := s.cfg.Journal.Read(ctx, key)
	switch code := fault.CodeOf(err); {
	case code == fault.NotFound:
		return nil, unknownRequest(key)
	case err != nil:
		return nil, fault.Wrap(fault.Unavailable, err, "resume request %s", key.ID).After(time.Second)
	}
	return readLog(key, records)
}

func unknownRequest(key journal.Key) error {
	return fault.New(fault.NotFound, "find request %s: it is unknown or has expired", key.ID)
}

// maxTakes bounds how often a router tries to append after the last record while another one still
// writes.
const maxTakes = 16

// takeOver continues a request of another router from its journal.
func (s *Service) takeOver(ctx context.Context, l *live) error {
	for range maxTakes {
		log, err := s.journaled(ctx, l.key)
		if err != nil {
			return err
		}
		l.change(func() { l.sought = false })
		q, err := s.fromLog(ctx, l, log)
		if err != nil {
			return err
		}
		defer s.release(q.adapter)
		if log.end == nil {
			w := newScribe(s, l, log.open)
			w.seq = log.seq
			taken := &journalv1.Record_Taken{Taken: &journalv1.Taken{}}
			err := w.append(ctx, &journalv1.Record{Writer: w.writer, Kind: taken})
			if fault.CodeOf(err) == fault.Aborted {
				continue // the other router has appended meanwhile
			}
			if err != nil {
				return fault.Wrap(fault.Unavailable, err, "resume request %s", l.key.ID).After(time.Second)
			}
			s.log.InfoContext(ctx, "take request over", "tokens", len(log.ids), "writer", w.writer)
			// Its span is part of the trace that the other router has begun, or else of that of the caller who resumes
			// it.
			ctx = q.startSpan(trace.Below(ctx, log.open.GetTraceparent()))
			q.span.Event("take request over", attribute.Int("lamina.resumed_tokens", len(log.ids)))
			had := len(log.ids) // the other router has charged these; goOn changes the log
			err = q.goOn(ctx, log, w)
			s.charge(q.caller, len(q.log)-len(q.prompt)-had)
			s.m.requests.WithLabelValues(endLabel(err)).Inc()
			q.endSpan(err)
			return err
		}
		return q.goOn(ctx, log, nil)
	}
	return fault.New(fault.Unavailable, "resume request %s: its router still writes", l.key.ID).After(time.Second)
}

// fromLog makes the request of a journal again. It fails if this router cannot run it, so that the
// router that does run it is left alone.
func (s *Service) fromLog(ctx context.Context, l *live, log *requestLog) (*request, error) {
	o := log.open
	l.state = o.GetClientState()
	q := &request{
		service: s, model: o.GetModel(), maxTokens: o.GetRules().GetMaxTokens(), stop: o.GetStop(),
		top: o.GetRules().GetTopLogprobs(), field: o.GetPromptField(),
		echo: echo{on: o.GetEcho() != nil, special: o.GetEcho().GetSpecial()},
		sink: l.sink(), live: l, keepMarkers: o.GetKeepMarkers(), format: o.GetFormat(), promptEnd: o.GetPromptEnd(),
		toolGrammar: o.GetToolGrammar(), id: o.GetRequestId(), digest: o.GetDigest(), rules: o.GetRules(),
		prompt: o.GetPrompt(), arrived: time.Now(), waits: time.Now(),
		started: &routerv1.Started{
			RequestId: o.GetRequestId(), Model: o.GetModel(), Digest: o.GetDigest(), PromptIds: o.GetPrompt(),
			Seed: o.GetRules().GetSeed(), Fingerprint: o.GetFingerprint(), Format: o.GetFormat(),
			PromptEnd: o.GetPromptEnd(), Resumable: true, MaxTokens: o.GetRules().GetMaxTokens(),
			Context: o.GetContext(), Adapter: o.GetAdapter(),
		},
		priority: int(o.GetPriority()), caller: o.GetCaller(),
	}
	if o.WaitForCapacity != nil {
		q.wait = o.WaitForCapacity
	}
	if err := q.resumePolicy(o.GetContext()); err != nil {
		return nil, fault.Wrap(fault.DataLoss, err, "resume request %s", q.id)
	}
	tokenizers, err := s.tokenizers(q.digest)
	if err != nil {
		return nil, err
	}
	v, err := s.vocabulary(ctx, q.digest, tokenizers)
	if err != nil {
		return nil, err
	}
	if log.end == nil {
		if q.picker, err = picker(q.rules); err != nil {
			return nil, err
		}
		a, err := s.acquireDigest(q.digest, o.GetAdapter())
		if err == nil {
			if err = s.fits(o.GetDigest(), o.GetFingerprint(), a); err != nil {
				s.release(a)
			}
		}
		if err != nil {
			return nil, err
		}
		q.adapter = a
	}
	if q.rules.GetGrammar() != nil {
		q.tokens = v.tokens
	}
	for _, id := range q.prompt {
		q.log = append(q.log, int32(id))
	}
	q.text = newTextOut(v, q.prompt, q.stop, q.keepMarkers)
	return q, nil
}

// fits returns an error unless a pipeline has the fingerprint: only there the text goes on as it began.
func (s *Service) fits(digest, wanted string, a *servedAdapter) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var other string
	for _, p := range s.pipelines {
		if p.digest != digest || p.draft || p.dead() {
			continue
		}
		if other = fingerprint(p, a); other == wanted {
			return nil
		}
	}
	if other == "" {
		return s.noPipeline(digest)
	}
	return fault.New(fault.FailedPrecondition, "resume request: it needs the fingerprint %s, and the pipelines have %s",
		wanted, other)
}

// goOn sends what the journal has and generates the rest.
func (q *request) goOn(ctx context.Context, log *requestLog, w *scribe) error {
	if log.end == nil {
		// The last token is generated again: it may have been the one that ended the answer.
		log.cut(len(log.ids) - 1)
	}
	if err := q.sink.started(q.started); err != nil {
		return err
	}
	q.started = nil
	q.live.markOpened()
	if err := q.openEcho(); err != nil {
		return err
	}
	stopped := false
	for i, id := range log.ids {
		var err error
		if stopped, err = q.emit(&samplerv1.Token{Id: id, Logprob: log.logprobs[i], Top: log.top[i]}); err != nil {
			return err
		}
	}
	if w != nil {
		w.written = len(log.ids)
		q.service.write(w)
		return q.generate(ctx)
	}
	if err := log.err(); err != nil {
		return err
	}
	rest := ""
	if !stopped {
		rest = q.text.flush()
	}
	return q.finish(log.end.GetFinishReason(), rest, len(log.ids))
}

// Cancel ends a resumable request, wherever it runs.
func (s *Service) Cancel(ctx context.Context, r *routerv1.CancelRequest) (*routerv1.CancelResponse, error) {
	return &routerv1.CancelResponse{}, s.cancelRequest(ctx, r.GetRequestId())
}

func (s *Service) cancelRequest(ctx context.Context, id string) error {
	key, err := requestKey(ctx, id)
	if err != nil {
		return err
	}
	s.requests.mu.Lock()
	l := s.requests.lives[key]
	s.requests.mu.Unlock()
	if l != nil && !l.broken() {
		l.cancel(errCanceled)
		if known, err := l.wait(ctx); known || err != nil {
			return err
		}
	}
	for range maxTakes {
		log, err := s.journaled(ctx, key)
		if err != nil || log.end != nil {
			return err
		}
		end := &journalv1.Record{Kind: &journalv1.Record_End{End: endRecord(errCanceled)}}
		data, err := proto.Marshal(end)
		if err != nil {
			return fault.Wrap(fault.Internal, err, "encode record")
		}
		// The router that runs the request stops when its next record is refused.
		_, err = s.cfg.Journal.Append(ctx, key, log.seq, data)
		if fault.CodeOf(err) != fault.Aborted {
			return err
		}
	}
	return fault.New(fault.Unavailable, "cancel request %s: its router still writes", id).After(time.Second)
}
