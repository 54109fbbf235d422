package router

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	journalv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/journal/v1"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
)

const (
	journalEvery    = 20 * time.Millisecond  // between two records of a request
	journalBatch    = 1024                   // tokens of a record
	journalBacklog  = 4096                   // tokens that may wait to be appended
	journalPatience = 10 * time.Second       // for one record
	journalPause    = 100 * time.Millisecond // between two attempts
	journalRestarts = 3                      // how often the journal of a request may be written anew
)

// errOvertaken ends a request that another router has taken over.
var errOvertaken = fault.New(fault.Aborted, "run request: another router has taken it over")

// openRecord returns what another router needs to know to continue the request.
func (q *request) openRecord(l *live) *journalv1.Open {
	open := &journalv1.Open{
		RequestId: q.id, Tenant: l.key.Tenant, Model: q.started.GetModel(), Digest: q.digest,
		Fingerprint: q.started.GetFingerprint(), Prompt: q.prompt, Rules: q.rules, Stop: q.stop,
		KeepMarkers: q.keepMarkers, Format: q.format, PromptEnd: q.promptEnd, ClientState: l.state,
		PromptField: q.field, ToolGrammar: q.toolGrammar, Context: q.context.use, Priority: int32(q.priority),
		WaitForCapacity: q.wait, Adapter: q.adapter.namespace(), Traceparent: q.span.Traceparent(), Caller: q.caller,
	}
	if q.echo.on {
		open.Echo = &journalv1.Echo{Special: q.echo.special}
	}
	return open
}

// scribe appends the log of a live request to the journal, behind its tokens. The live request is its
// queue: the scribe takes what has come since the last record. If it cannot keep up it gives up, and
// the request goes on without it. What is in the journal then still serves to continue the request.
type scribe struct {
	service *Service
	live    *live
	open    *journalv1.Open
	writer  uint64
	seq     uint64 // of the last record; 0 before the first
	written int    // tokens
}

func newScribe(s *Service, l *live, open *journalv1.Open) *scribe {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return &scribe{service: s, live: l, open: open, writer: binary.LittleEndian.Uint64(b[:])}
}

// record returns the next record, and how many tokens are written when it is stored. There is none if
// nothing has happened since the last one; over says that there will be none.
func (w *scribe) record() (r *journalv1.Record, written int, over bool, changed <-chan struct{}, err error) {
	r = &journalv1.Record{Writer: w.writer}
	if w.seq == 0 {
		r.Kind = &journalv1.Record_Open{Open: w.open}
		return r, 0, false, nil, nil
	}
	l := w.live
	l.mu.Lock()
	defer l.mu.Unlock()
	total := l.first + len(l.tokens)
	switch {
	case w.written < l.first || total-w.written > journalBacklog:
		return nil, 0, true, nil, fault.New(fault.Exhausted, "%d tokens wait to be appended", total-w.written)
	case w.written < total:
		batch := l.tokens[w.written-l.first:]
		batch = batch[:min(len(batch), journalBatch)]
		r.Kind = &journalv1.Record_Tokens{Tokens: tokensRecord(w.written, batch)}
		return r, w.written + len(batch), false, nil, nil
	case !l.ended:
		return nil, w.written, false, l.changed, nil
	case l.finished != nil:
		r.Kind = &journalv1.Record_End{End: &journalv1.End{FinishReason: l.finished.GetFinishReason()}}
		return r, w.written, true, nil, nil
	case final(l.err):
		r.Kind = &journalv1.Record_End{End: endRecord(l.err)}
		return r, w.written, true, nil, nil
	}
	return nil, w.written, true, nil, nil // the request can be continued
}

func tokensRecord(first int, batch []*routerv1.TokenEvent) *journalv1.Tokens {
	t := &journalv1.Tokens{First: uint32(first)}
	for _, e := range batch {
		t.Ids, t.Logprobs = append(t.Ids, e.GetId()), append(t.Logprobs, e.GetLogprob())
		if len(e.GetTop()) > 0 || len(t.TopCounts) > 0 {
			for len(t.TopCounts) < len(t.Ids)-1 {
				t.TopCounts = append(t.TopCounts, 0)
			}
			t.TopCounts = append(t.TopCounts, uint32(len(e.GetTop())))
		}
		for _, c := range e.GetTop() {
			t.Top = append(t.Top, &samplerv1.Candidate{Id: c.GetId(), Logprob: c.GetLogprob()})
		}
	}
	return t
}

func endRecord(err error) *journalv1.End {
	end := &journalv1.End{Code: uint32(rpc.Code(fault.CodeOf(err))), Message: err.Error()}
	var f *fault.Error
	if errors.As(err, &f) && f.Field != "" {
		end.Field, end.Message = f.Field, f.Msg
	}
	return end
}

// run appends records until the request has ended, the journal is given up, or ctx ends.
func (w *scribe) run(ctx context.Context) {
	defer w.live.markOpened()
	if w.seq != 0 {
		w.live.markOpened()
	}
	restarts := 0
	for {
		err := w.write(ctx)
		switch code := fault.CodeOf(err); {
		case err == nil || ctx.Err() != nil:
			return
		case code == fault.Aborted || code == fault.AlreadyExists:
			reason := error(errOvertaken)
			if w.seq == 0 {
				reason = fault.Wrap(fault.AlreadyExists, errOvertaken, "run request %s: the id is in use",
					w.open.GetRequestId())
			}
			w.live.cancel(reason)
			w.service.log.Info("end request that another router runs", "request_id", w.open.GetRequestId(), "error",
				err)
			return
		case code == fault.NotFound && restarts < journalRestarts: // expired, or the store was lost
			restarts++
			w.seq, w.written = 0, 0
		default:
			w.service.m.unjournaled.WithLabelValues(code.String()).Inc()
			w.service.log.Warn("give up the journal of a request: another router can continue it only from here",
				"request_id", w.open.GetRequestId(), "tokens", w.written, "error", err)
			return
		}
	}
}

// write appends records until one cannot be stored.
func (w *scribe) write(ctx context.Context) error {
	pace := time.NewTicker(journalEvery)
	defer pace.Stop()
	for {
		r, written, over, changed, err := w.record()
		if err != nil {
			return err
		}
		if r == nil {
			if over {
				return nil
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		if err := w.append(ctx, r); err != nil {
			return err
		}
		if w.written = written; over {
			return nil
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// append stores a record. It repeats the same record while the journal cannot be reached, because the
// record may have been stored without an answer.
func (w *scribe) append(ctx context.Context, r *journalv1.Record) error {
	data, err := proto.Marshal(r)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "encode record")
	}
	limit, cancel := context.WithTimeout(ctx, journalPatience)
	defer cancel()
	for {
		seq, err := w.service.cfg.Journal.Append(limit, w.live.key, w.seq, data)
		code := fault.CodeOf(err)
		if err == nil {
			w.seq = seq
			w.live.markOpened()
			return nil
		}
		if code != fault.Unavailable && code != fault.DeadlineExceeded || limit.Err() != nil {
			return err
		}
		if w.behind() {
			return err
		}
		pause := time.NewTimer(journalPause)
		select {
		case <-pause.C:
		case <-limit.Done():
			pause.Stop()
			return err
		}
	}
}

// behind reports whether more tokens wait than may.
func (w *scribe) behind() bool {
	w.live.mu.Lock()
	defer w.live.mu.Unlock()
	return w.live.first+len(w.live.tokens)-w.written > journalBacklog
}

// requestLog is what the journal knows about a request.
type requestLog struct {
	open     *journalv1.Open
	ids      []uint32
	logprobs []float32
	top      [][]*samplerv1.Candidate
	end      *journalv1.End // nil while the request runs, or when its router was lost
	seq      uint64         // of the last record
}

// readLog reads and checks the records of a request.
func readLog(key journal.Key, records []journal.Record) (*requestLog, error) {
	log := &requestLog{}
	damaged := func(i int, format string, args ...any) error {
		return fault.Wrap(fault.DataLoss, fault.New(fault.DataLoss, format, args...),
			"read the journal of request %s: record %d of %d", key.ID, i, len(records))
	}
	for i, stored := range records {
		log.seq = stored.Seq
		r := &journalv1.Record{}
		if err := proto.Unmarshal(stored.Data, r); err != nil {
			return nil, damaged(i, "decode: %v", err)
		}
		_, opens := r.GetKind().(*journalv1.Record_Open)
		switch {
		case opens != (i == 0):
			return nil, damaged(i, "the first record is open, and no other; earlier ones may have expired")
		case log.end != nil:
			return nil, damaged(i, "it follows the end")
		}
		switch kind := r.GetKind().(type) {
		case *journalv1.Record_Open:
			log.open = kind.Open
			if err := checkOpen(key, kind.Open); err != nil {
				return nil, damaged(i, "%v", err)
			}
		case *journalv1.Record_Tokens:
			if err := log.add(kind.Tokens); err != nil {
				return nil, damaged(i, "%v", err)
			}
		case *journalv1.Record_Taken:
		case *journalv1.Record_End:
			log.end = kind.End
			reason := kind.End.GetFinishReason()
			if _, known := samplerv1.FinishReason_name[int32(reason)]; !known ||
				(reason == samplerv1.FinishReason_FINISH_REASON_UNSPECIFIED) == (kind.End.GetCode() == 0) {
				return nil, damaged(i, "end: finish reason %d with code %d", reason, kind.End.GetCode())
			}
		default:
			return nil, damaged(i, "unknown kind")
		}
	}
	if log.open == nil {
		return nil, damaged(0, "it is missing")
	}
	return log, nil
}

// checkOpen checks what the code that continues a request relies on.
func checkOpen(key journal.Key, o *journalv1.Open) error {
	switch {
	case o.GetRequestId() != key.ID || o.GetTenant() != key.Tenant:
		return fault.New(fault.DataLoss, "open: it belongs to another request")
	case o.GetDigest() == "" || o.GetFingerprint() == "":
		return fault.New(fault.DataLoss, "open: no digest or no fingerprint")
	case len(o.GetPrompt()) == 0:
		return fault.New(fault.DataLoss, "open: no prompt")
	case o.GetRules().GetMaxTokens() == 0 || o.GetRules().GetMaxTokens() > samplerules.MaxTokens:
		return fault.New(fault.DataLoss, "open: max_tokens %d is not within 1..%d", o.GetRules().GetMaxTokens(),
			samplerules.MaxTokens)
	case len(o.GetStop()) > samplerules.MaxStops:
		return fault.New(fault.DataLoss, "open: %d stop strings", len(o.GetStop()))
	}
	_, err := picker(o.GetRules())
	return err
}

// add adds the tokens of a record. A router that took the request over may have written some again,
// which are the same.
func (g *requestLog) add(t *journalv1.Tokens) error {
	first, n := int(t.GetFirst()), len(t.GetIds())
	switch most := int(g.open.GetRules().GetMaxTokens()); {
	case first > len(g.ids):
		return fault.New(fault.DataLoss, "tokens: they begin at %d after %d tokens", first, len(g.ids))
	case n == 0 || n > journalBatch || first+n > most:
		return fault.New(fault.DataLoss, "tokens: %d from %d on, of at most %d", n, first, most)
	case len(t.GetLogprobs()) != n:
		return fault.New(fault.DataLoss, "tokens: %d log-probabilities of %d tokens", len(t.GetLogprobs()), n)
	case len(t.GetTopCounts()) != n && len(t.GetTopCounts()) != 0:
		return fault.New(fault.DataLoss, "tokens: %d counts of candidates of %d tokens", len(t.GetTopCounts()), n)
	}
	g.cut(first)
	top := t.GetTop()
	for i, id := range t.GetIds() {
		count := 0
		if len(t.GetTopCounts()) > 0 {
			count = int(t.GetTopCounts()[i])
		}
		if count > len(top) {
			return fault.New(fault.DataLoss, "tokens: candidates of token %d are missing", first+i)
		}
		g.ids, g.logprobs = append(g.ids, id), append(g.logprobs, t.GetLogprobs()[i])
		g.top, top = append(g.top, top[:count]), top[count:]
	}
	if len(top) > 0 {
		return fault.New(fault.DataLoss, "tokens: %d candidates belong to no token", len(top))
	}
	return nil
}

// cut keeps the first n tokens.
func (g *requestLog) cut(n int) {
	n = max(0, min(n, len(g.ids)))
	g.ids, g.logprobs, g.top = g.ids[:n], g.logprobs[:n], g.top[:n]
}

// err returns the error that ended the request, or nil.
func (g *requestLog) err() error {
	if g.end == nil || g.end.GetCode() == 0 {
		return nil
	}
	return &fault.Error{Code: rpc.FaultCode(codes.Code(g.end.GetCode())), Field: g.end.GetField(),
		Msg: g.end.GetMessage()}
}
