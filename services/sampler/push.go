package sampler

import (
	"errors"
	"io"
	"math"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/samplerules"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// eof returns nil if err is the regular end of the client's side of a stream.
func eof(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// push is the state of a Push stream from the last stage.
type push struct {
	service  *Service
	pipeline *pipeline
	stream   grpc.BidiStreamingServer[samplerv1.PushRequest, samplerv1.PushResponse]
	vocab    int
	tensors  *wire.Assembler
	pending  *samplerv1.Row // a row whose chunks have not all arrived
	logits   []float32
}

// Push implements the stream of the last stage.
func (s *Service) Push(stream grpc.BidiStreamingServer[samplerv1.PushRequest, samplerv1.PushResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil || open.GetVocab() == 0 || open.GetVocab() > samplerules.MaxVocab {
		return fault.Field("open", "the first frame must name a pipeline and the vocabulary's size")
	}
	s.mu.Lock()
	p := s.pipelines[string(open.GetPipeline())]
	s.mu.Unlock()
	if p == nil {
		return fault.New(fault.FailedPrecondition, "push to pipeline %x: no router has opened it", open.GetPipeline())
	}
	opened := &samplerv1.PushResponse{Frame: &samplerv1.PushResponse_Opened{Opened: &samplerv1.PushOpened{}}}
	if err := stream.Send(opened); err != nil {
		return err
	}
	u := &push{
		service: s, pipeline: p, stream: stream, vocab: int(open.GetVocab()),
		tensors: wire.NewAssembler(4 * int(open.GetVocab())),
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return eof(err)
		}
		s.bytes.Add(float64(proto.Size(req)))
		switch frame := req.GetFrame().(type) {
		case *samplerv1.PushRequest_Rows:
			for _, row := range frame.Rows.GetRows() {
				if err := u.row(row); err != nil {
					return err
				}
			}
		case *samplerv1.PushRequest_Chunk:
			done, err := u.tensors.Add(frame.Chunk)
			if err == nil && done {
				err = u.finish()
			}
			if err != nil {
				return err
			}
		default:
			return fault.Field("frame", "%T is not allowed after open", frame)
		}
	}
}

// row starts a row, which may be followed by chunks with the rest of its bytes.
func (u *push) row(r *samplerv1.Row) error {
	if r.GetLogits() == nil {
		u.drop(r, fault.New(fault.Internal, "read row: it has no logits"))
		return nil
	}
	done, err := u.tensors.Start(r.GetLogits())
	if err != nil {
		return err // the number of bytes that follow is unknown
	}
	u.pending = r
	if done {
		return u.finish()
	}
	return nil
}

// drop ends the session of a row that cannot be used.
func (u *push) drop(r *samplerv1.Row, err error) {
	p := u.pipeline
	p.mu.Lock()
	n := p.sessions[string(r.GetSession())]
	stale := n == nil || r.GetEpoch() < n.epoch || int64(r.GetPosition()) <= n.last
	if !stale {
		p.drop(string(r.GetSession()))
	}
	p.mu.Unlock()
	if !stale {
		p.reply(failed(r.GetSession(), r.GetEpoch(), err))
	}
}

// finish picks a token from the pending row, which is complete.
func (u *push) finish() error {
	r := u.pending
	u.pending = nil
	var err error
	if u.logits, err = u.tensors.Float32(u.logits); err != nil {
		return err
	}
	if r.Target != nil {
		u.score(r)
		return nil
	}
	candidates, whole, err := u.candidates(r)
	if err != nil {
		u.drop(r, err)
		return nil
	}
	reply, wanted := u.pipeline.pick(r, candidates, whole, u.logits)
	if wanted {
		u.service.rows.Inc()
		return u.stream.Send(&samplerv1.PushResponse{Frame: &samplerv1.PushResponse_RowWanted{
			RowWanted: &samplerv1.RowWanted{Session: r.GetSession(), Position: r.GetPosition()},
		}})
	}
	if reply != nil {
		if reply.GetToken() != nil {
			u.service.tokens.Inc()
		}
		u.pipeline.reply(reply)
	}
	return nil
}

// score answers a row of the prompt with the log-probability of the token that follows it. It picks
// no token and does not change the session's state. A row that cannot be read ends only its
// session.
func (u *push) score(r *samplerv1.Row) {
	candidates, whole, err := u.candidates(r)
	at := slices.Index(r.GetIds(), r.GetTarget())
	if err == nil && !whole && at < 0 {
		err = fault.New(fault.Internal, "read row at position %d: target %d is not among the candidates",
			r.GetPosition(), r.GetTarget())
	}
	if err == nil && whole && int64(r.GetTarget()) >= int64(u.vocab) {
		err = fault.New(fault.Internal, "read row at position %d: target %d is outside the vocabulary of %d",
			r.GetPosition(), r.GetTarget(), u.vocab)
	}
	if err != nil {
		u.drop(r, err)
		return
	}
	logprob := func(logit float32) float32 { return float32(float64(logit) - r.GetLogSumExp()) }
	score := &samplerv1.Score{Session: r.GetSession(), Epoch: r.GetEpoch(), Position: r.GetPosition() + 1,
		Id: r.GetTarget()}
	p := u.pipeline
	p.mu.Lock()
	n := p.sessions[string(r.GetSession())]
	stale, top := n == nil || r.GetEpoch() < n.epoch, 0
	if !stale {
		top = n.top
	}
	p.mu.Unlock()
	if stale {
		return
	}
	if whole { // the row is in the order of the ids
		candidates, score.Logprob = sample.Best(u.logits, top), logprob(u.logits[r.GetTarget()])
	} else {
		score.Logprob = logprob(u.logits[at])
	}
	for _, c := range candidates[:min(top, len(candidates))] {
		score.Top = append(score.Top, &samplerv1.Candidate{Id: uint32(c.ID), Logprob: logprob(c.Logit)})
	}
	p.reply(&samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Score{Score: score}})
}

// candidates checks a row and returns its candidates, or reports that it is a full logits row. An
// error is caused by the stage or the model, never by the request, and ends only the row's session.
func (u *push) candidates(r *samplerv1.Row) ([]sample.Candidate, bool, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Internal, "read row at position %d: "+format, append([]any{r.GetPosition()}, args...)...)
	}
	if lse := r.GetLogSumExp(); math.IsNaN(lse) || math.IsInf(lse, 0) {
		return nil, false, bad("log_sum_exp %v is not finite", lse)
	}
	if len(r.GetIds()) == 0 {
		if len(u.logits) != u.vocab {
			return nil, false, bad("%d logits, want the vocabulary's %d", len(u.logits), u.vocab)
		}
		return nil, true, nil
	}
	if len(r.GetIds()) != len(u.logits) {
		return nil, false, bad("%d ids for %d logits", len(r.GetIds()), len(u.logits))
	}
	out := make([]sample.Candidate, len(u.logits))
	for i, id := range r.GetIds() {
		if int64(id) >= int64(u.vocab) {
			return nil, false, bad("id %d is outside the vocabulary of %d", id, u.vocab)
		}
		out[i] = sample.Candidate{ID: int32(id), Logit: u.logits[i]}
	}
	if len(out) < u.vocab {
		return out, false, nil
	}
	row := make([]float32, u.vocab)
	for _, c := range out {
		row[c.ID] = c.Logit
	}
	u.logits = row
	return nil, true, nil
}

// pick advances a session by one row. It returns the reply to the router, or reports that the full
// logits row is wanted. For a row that nobody waits for it returns neither. A panic ends the
// session but not the stream, which all sessions share.
func (p *pipeline) pick(
	r *samplerv1.Row, candidates []sample.Candidate, whole bool, row []float32,
) (reply *samplerv1.SampleResponse, wanted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.sessions[string(r.GetSession())]
	if n == nil || r.GetEpoch() < n.epoch || int64(r.GetPosition()) <= n.last {
		return nil, false
	}
	if r.GetEpoch() > n.epoch { // the session is about to be added again, and its log may be another one
		p.drop(string(r.GetSession()))
		return failed(r.GetSession(), r.GetEpoch(), fault.New(fault.FailedPrecondition,
			"pick token: the row has epoch %d, and the session epoch %d", r.GetEpoch(), n.epoch)), false
	}
	if r.DraftId != nil && (int64(r.GetPosition()) != n.last+1 || n.history.Last() != int32(r.GetDraftId())) {
		return nil, false // it follows a draft token that was rejected
	}
	defer func() {
		if c := recover(); c != nil {
			p.drop(string(r.GetSession()))
			reply, wanted = failed(r.GetSession(), r.GetEpoch(), fault.New(fault.Internal, "pick token: %v", c)), false
		}
	}()
	choice, err := n.pick(r, candidates, whole, row)
	switch {
	case errors.Is(err, sample.ErrTooFew) && !whole:
		return nil, true
	case err != nil:
		p.drop(string(r.GetSession()))
		return failed(r.GetSession(), r.GetEpoch(), err), false
	}
	return n.token(r, choice), false
}

// pick applies the session's grammar and sampling parameters to a row. An error that names a field
// is caused by the request.
func (n *session) pick(
	r *samplerv1.Row, candidates []sample.Candidate, whole bool, row []float32,
) (choice sample.Choice, err error) {
	if n.matcher != nil {
		if err := n.allow(); err != nil {
			return choice, fault.Field("grammar.source", "%v", err)
		}
	}
	position := int(r.GetPosition()) + 1 + n.dropped // in the whole log, so that no random number is used twice
	if whole {
		choice, err = n.picker.PickRow(row, r.GetLogSumExp(), n.history, position)
	} else {
		choice, err = n.picker.Pick(candidates, r.GetLogSumExp(), n.history, position)
	}
	switch {
	case errors.Is(err, sample.ErrNone) && n.matcher != nil:
		return choice, fault.Field(
			"grammar.source", "the grammar and the sampling parameters leave no token at position %d", position,
		)
	case errors.Is(err, sample.ErrNone):
		return choice, fault.Field("advanced", "the sampling parameters leave no token at position %d", position)
	case err != nil:
		return choice, err
	}
	if n.matcher != nil && !n.ends[choice.ID] {
		if err := n.matcher.Accept(choice.ID); err != nil {
			return choice, fault.Field("grammar.source", "%v", err)
		}
	}
	return choice, nil
}

// allow applies the mask of the session's grammar to the next pick.
func (n *session) allow() error {
	n.picker.Allow(n.mask)
	return n.matcher.Mask(n.mask)
}

// token records a choice and returns the reply to the router.
func (n *session) token(r *samplerv1.Row, choice sample.Choice) *samplerv1.SampleResponse {
	n.last = int64(r.GetPosition())
	n.emitted++
	n.history.Emit(choice.ID, float64(float32(choice.Logprob))) // in the precision that another sampler would receive
	token := &samplerv1.Token{
		Session: r.GetSession(), Epoch: n.epoch, Position: r.GetPosition() + 1, Id: uint32(choice.ID),
		Logprob: float32(choice.Logprob),
	}
	for _, c := range choice.Top {
		token.Top = append(token.Top, &samplerv1.Candidate{Id: uint32(c.ID), Logprob: c.Logit})
	}
	switch {
	case n.ends[choice.ID], n.matcher != nil && len(n.ends) == 0 && n.matcher.Done():
		token.FinishReason = samplerv1.FinishReason_FINISH_REASON_STOP
	case n.limit > 0 && n.emitted >= n.limit:
		token.FinishReason = samplerv1.FinishReason_FINISH_REASON_LENGTH
	}
	return &samplerv1.SampleResponse{Frame: &samplerv1.SampleResponse_Token{Token: token}}
}
