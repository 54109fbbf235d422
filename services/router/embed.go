package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

const (
	maxInputs  = 2048
	embedRows  = 256              // of one call to a stage, unless a single text has more
	embedLimit = 60 * time.Second // for one call to a stage
	embedTries = 3                // chains that a request may lose
	// maxEmbeddings is the number of values of a response, which has to fit into a message.
	maxEmbeddings = 900_000
)

// Embed computes the embeddings of texts.
func (s *Service) Embed(ctx context.Context, r *routerv1.EmbedRequest) (*routerv1.EmbedResponse, error) {
	ctx, done, err := s.requests.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	resp, err := s.embedTexts(ctx, r)
	return resp, cause(ctx, err)
}

func (s *Service) embedTexts(ctx context.Context, r *routerv1.EmbedRequest) (_ *routerv1.EmbedResponse, err error) {
	if _, known := shardv1.PoolKind_name[int32(r.GetPooling().GetKind())]; !known {
		return nil, fault.Field("pooling.kind", "unknown kind %d", r.GetPooling().GetKind())
	}
	if n := len(r.GetInputs()); n == 0 || n > maxInputs {
		return nil, fault.Field("inputs", "%d texts are not within 1..%d", n, maxInputs)
	}
	chains, h, err := s.awaitEmbedders(ctx, r.GetModel(), defaultWait)
	if err != nil {
		return nil, err
	}
	name := s.embedderName(r.GetModel(), h)
	if err := auth.CheckModel(ctx, name, h.GetModel(), h.GetDigest()); err != nil {
		return nil, err
	}
	if n := len(r.GetInputs()) * int(h.GetWidth()); n > maxEmbeddings {
		return nil, fault.Field("inputs", "%d embeddings of %d values are more than %d values: send fewer texts",
			len(r.GetInputs()), h.GetWidth(), maxEmbeddings)
	}
	texts, err := s.embedIDs(ctx, r, h)
	if err != nil {
		return nil, err
	}
	tokens := int64(0)
	for _, ids := range texts {
		tokens += int64(len(ids))
	}
	settle, err := auth.From(ctx).Meter().Reserve(tokens)
	if err != nil {
		return nil, err
	}
	defer func() {
		if refusedByFleet(ctx, err) {
			tokens = 0
		}
		settle(tokens)
	}()
	defer func() { s.judge(ctx, r.GetModel(), h.GetDigest(), err, 0) }()
	start := time.Now()
	out := &routerv1.EmbedResponse{Model: name, Digest: h.GetDigest()}
	for try := 1; ; try++ {
		chain := chains[(int(s.embeds.Add(1))-1)%len(chains)] // the chains take turns
		out.Embeddings, err = s.embedOver(ctx, chain, texts, r.GetPooling(), int(h.GetWidth()))
		if err == nil {
			out.Fingerprint = h.GetDigest() + "/" + chain.Class()
			s.log.DebugContext(ctx, "end embed", "model", h.GetModel(), "texts", len(texts), "took", time.Since(start))
			return out, nil
		}
		if !fault.Retryable(err) || try == embedTries || ctx.Err() != nil {
			return nil, err
		}
		// Layers may have moved, or will: those of a lost shard are placed elsewhere.
		now, _, missing := s.awaitEmbedders(ctx, h.GetDigest(), s.embedPatience()-time.Since(start))
		if missing != nil {
			return nil, err
		}
		chains = now
	}
}

// embedPatience is how long a call waits for the layers that it has lost: longer where they are placed again.
func (s *Service) embedPatience() time.Duration {
	if s.placer != nil && s.placer.wanted() {
		return unheardLimit
	}
	return defaultWait
}

// refusedByFleet reports whether a request has ended with an error because the fleet had no room for it or has lost it,
// and not because of what it asked for or since its client has gone.
func refusedByFleet(ctx context.Context, err error) bool {
	code := fault.CodeOf(err)
	return err != nil && ctx.Err() == nil && (code == fault.Unavailable || code == fault.Exhausted)
}

// embedderName returns what a client calls a model: the name of the deployment that it asked for, or that of the model.
func (s *Service) embedderName(asked string, h *shardv1.Held) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.deploys.state.Find(asked); asked != "" && d != nil {
		return d.Name
	}
	if asked == "" {
		for _, d := range s.deploys.state.Of(h.GetDigest()) {
			return d.Name
		}
	}
	return h.GetModel()
}

// embedChains returns the chains of shards that can compute embeddings by a model, given by name or digest, and
// the description of one of its spans. An empty name means the only model.
func (s *Service) embedChains(name string) ([]plan.Chain, *shardv1.Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.deploys.state.Find(name); d != nil && name != "" {
		s.wakeLocked(d)
		if d.Live == nil {
			return nil, nil, s.noVersion(d)
		}
		name = d.Live.Digest
	}
	found := map[string]*shardv1.Held{} // by digest
	for _, d := range s.held {
		for _, h := range d.resp.GetHeld() {
			if name == h.GetModel() || name == h.GetDigest() || name == "" &&
				!s.isDraft(h.GetModel(), h.GetDigest()) && !s.deploys.state.Hidden(h.GetDigest()) {
				found[h.GetDigest()] = h
			}
		}
	}
	switch {
	case len(found) > 1 && name == "":
		return nil, nil, fault.Field("model", "several models are served: name one")
	case len(found) > 1:
		return nil, nil, fault.Field("model", "%q names several models: give a digest", name)
	}
	for digest, h := range found {
		if h.GetEmbedTokens() == 0 {
			return nil, nil, fault.New(
				fault.FailedPrecondition,
				"embed texts: the pooling of model %q is not supported",
				h.GetModel(),
			)
		}
		if chains := s.embedders(digest); len(chains) > 0 {
			return chains, h, nil
		}
	}
	return nil, nil, s.noPipeline(name)
}

// encoders lists the encoders that a complete chain of shards holds. The caller holds mu.
func (s *Service) encoders() []*shardv1.Held {
	byDigest := map[string]*shardv1.Held{}
	for _, d := range s.held {
		for _, h := range d.resp.GetHeld() {
			if h.GetEncoder() {
				byDigest[h.GetDigest()] = h
			}
		}
	}
	var out []*shardv1.Held
	for digest, h := range byDigest {
		if len(s.embedders(digest)) > 0 && s.models[digest] != nil {
			out = append(out, h)
		}
	}
	return out
}

// embedIDs returns the ids of all texts and checks their lengths.
func (s *Service) embedIDs(ctx context.Context, r *routerv1.EmbedRequest, h *shardv1.Held) ([][]uint32, error) {
	out := make([][]uint32, len(r.GetInputs()))
	most := h.GetEmbedTokens()
	var texts []string
	var places []int
	for i, input := range r.GetInputs() {
		switch in := input.GetInput().(type) {
		case *routerv1.EmbedInput_Text:
			texts, places = append(texts, in.Text), append(places, i)
		case *routerv1.EmbedInput_TokenIds:
			if out[i] = in.TokenIds.GetIds(); r.GetTruncate() {
				out[i] = out[i][:min(len(out[i]), int(most))]
			}
		default:
			return nil, fault.Field(fmt.Sprintf("inputs[%d]", i), "give text or token_ids")
		}
	}
	if len(texts) > 0 {
		req := &tokenizerv1.EncodeBatchRequest{Model: h.GetDigest(), Texts: texts}
		if r.GetTruncate() {
			req.Truncation = &tokenizerv1.Truncation{MaxTokens: most}
		}
		clients, err := s.tokenizers(h.GetDigest())
		if err != nil {
			return nil, err
		}
		var resp *tokenizerv1.EncodeBatchResponse
		for _, t := range clients { // another may be reachable
			resp, err = t.EncodeBatch(ctx, req)
			if err = rpc.FromStatus(err); fault.CodeOf(err) != fault.Unavailable {
				break
			}
		}
		if err != nil {
			return nil, nameInput(err, places)
		}
		if len(resp.GetEncodings()) != len(places) {
			return nil, fault.New(fault.Internal, "encode %d texts: got %d", len(places), len(resp.GetEncodings()))
		}
		for j, e := range resp.GetEncodings() {
			out[places[j]] = e.GetIds()
		}
	}
	for i, ids := range out {
		field := fmt.Sprintf("inputs[%d]", i)
		switch {
		case len(ids) == 0:
			return nil, fault.Field(field, "has no tokens")
		case len(ids) > int(most):
			return nil, &fault.Error{Code: fault.OutOfRange, Field: field,
				Msg: fmt.Sprintf("%d tokens are more than the %d that the model supports", len(ids), most)}
		}
		for at, id := range ids {
			if id >= h.GetVocab() {
				return nil, fault.Field(field, "id %d at %d is outside the vocabulary of %d", id, at, h.GetVocab())
			}
		}
	}
	return out, nil
}

// nameInput gives the text that a tokenizer has found at fault its name in the request. places has the inputs of the
// texts.
func nameInput(err error, places []int) error {
	var f *fault.Error
	i := -1
	if !errors.As(err, &f) {
		return err
	}
	if n, _ := fmt.Sscanf(f.Field, "texts[%d]", &i); n != 1 || i < 0 || i >= len(places) {
		return err
	}
	named := *f
	named.Field = fmt.Sprintf("inputs[%d]", places[i])
	return &named
}

// embedOver computes the embeddings of texts over a chain, batch by batch.
func (s *Service) embedOver(
	ctx context.Context, chain plan.Chain, texts [][]uint32, pooling *shardv1.Pooling, width int,
) ([]*routerv1.Embedding, error) {
	var out []*routerv1.Embedding
	for len(texts) > 0 {
		n, rows := 0, 0
		for n < len(texts) && (n == 0 || rows+len(texts[n]) <= embedRows) {
			rows += len(texts[n])
			n++
		}
		values, err := s.embedBatch(ctx, chain, texts[:n], pooling, width)
		if err != nil {
			return nil, err
		}
		for i, ids := range texts[:n] {
			out = append(out, &routerv1.Embedding{
				Values: values[i*width : (i+1)*width : (i+1)*width], Tokens: uint32(len(ids)),
			})
		}
		texts = texts[n:]
	}
	return out, nil
}

// embedBatch sends a batch through all stages and returns the embeddings [texts, width].
func (s *Service) embedBatch(
	ctx context.Context, chain plan.Chain, texts [][]uint32, pooling *shardv1.Pooling, width int,
) ([]float32, error) {
	open := &shardv1.EmbedOpen{Digest: chain.Digest(), Low: isLowest(ctx)}
	rows := 0
	for _, ids := range texts {
		open.Lengths = append(open.Lengths, uint32(len(ids)))
		open.Ids = append(open.Ids, ids...)
		rows += len(ids)
	}
	var hidden []float32
	for i, span := range chain {
		open.Lo, open.Hi = uint32(span.Lo), uint32(span.Hi)
		var chunks []*tensorv1.Chunk
		if i > 0 {
			open.Ids = nil
			open.Hidden, chunks = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{rows, width}, hidden)
		}
		want := []int{rows, width}
		if i == len(chain)-1 {
			open.Pooling, want[0] = pooling, len(texts)
		}
		var err error
		if hidden, err = s.embedStage(ctx, span, open, chunks, want); err != nil {
			if fault.CodeOf(err) == fault.Unavailable && !queueFull(err) && ctx.Err() == nil {
				s.forget(plan.Chain{span}) // it is used again once the shard has said that it holds the span
				s.poke()
			}
			return nil, err
		}
	}
	return hidden, nil
}

// embedStage calls one stage. want is the shape of its result.
func (s *Service) embedStage(
	ctx context.Context, span plan.Span, open *shardv1.EmbedOpen, chunks []*tensorv1.Chunk, want []int,
) ([]float32, error) {
	ctx, cancel := context.WithTimeout(ctx, embedLimit)
	defer cancel()
	conn, err := s.cfg.Dialer.Dial(span.Addr)
	if err != nil {
		return nil, err
	}
	stream, err := shardv1.NewShardServiceClient(conn).Embed(ctx)
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	// A failed send says only that the stream has ended; Recv says why.
	err = stream.Send(&shardv1.EmbedRequest{Frame: &shardv1.EmbedRequest_Open{Open: open}})
	for _, c := range chunks {
		if err == nil {
			err = stream.Send(&shardv1.EmbedRequest{Frame: &shardv1.EmbedRequest_Chunk{Chunk: c}})
		}
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, rpc.FromStatus(err)
	}
	tensor := wire.NewAssembler(4 * want[0] * want[1])
	for first := true; ; first = false {
		frame, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fault.New(fault.Internal, "embed by shard %s: the answer is not complete", span.Shard)
			}
			if err = rpc.FromStatus(err); fault.CodeOf(err) == fault.NotFound { // its layers have moved
				err = fault.Wrap(fault.Unavailable, err, "embed by shard %s", span.Shard)
			}
			return nil, err
		}
		var done bool
		if first {
			head := frame.GetResult()
			if shape := head.GetShape(); len(shape) != 2 || int(shape[0]) != want[0] || int(shape[1]) != want[1] {
				return nil, fault.New(fault.Internal, "embed by shard %s: shape %v, want %v", span.Shard, shape, want)
			}
			done, err = tensor.Start(head)
		} else {
			done, err = tensor.Add(frame.GetChunk())
		}
		if err != nil {
			return nil, fault.Wrap(fault.DataLoss, err, "embed by shard %s", span.Shard)
		}
		if done {
			return tensor.Float32(nil)
		}
	}
}

// Embed computes the embeddings of texts.
func (b *Backend) Embed(ctx context.Context, r *routerv1.EmbedRequest) (*routerv1.EmbedResponse, error) {
	return b.s.Embed(ctx, r)
}
