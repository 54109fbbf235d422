package sampler_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/pkg/wire"
	"github.com/lamina-mesh/lamina/services/sampler"
)

const vocab = 300

// both holds the two streams of one pipeline.
type both struct {
	t      *testing.T
	router grpc.BidiStreamingClient[samplerv1.SampleRequest, samplerv1.SampleResponse]
	stage  grpc.BidiStreamingClient[samplerv1.PushRequest, samplerv1.PushResponse]
	mu     sync.Mutex // guards sends
}

// open serves a sampler and opens a pipeline on it.
func open(t *testing.T) *both {
	t.Helper()
	return openOn(t, sampler.New(sampler.Config{}))
}

func openOn(t *testing.T, s *sampler.Service) *both {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	l, server := bufconn.Listen(1<<20), grpc.NewServer()
	s.Register(server)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); server.Stop(); wg.Wait() })
	b := &both{t: t}
	client, name := samplerv1.NewSamplerServiceClient(conn), id(0)
	if b.router, err = client.Sample(ctx); err != nil {
		t.Fatal(err)
	}
	b.tell(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Open{Open: &samplerv1.SampleOpen{Pipeline: name}}})
	b.hear()
	if b.stage, err = client.Push(ctx); err != nil {
		t.Fatal(err)
	}
	b.push(
		&samplerv1.PushRequest{Frame: &samplerv1.PushRequest_Open{Open: &samplerv1.PushOpen{Pipeline: name,
			Vocab: vocab}}},
	)
	if _, err := b.stage.Recv(); err != nil {
		t.Fatal(err)
	}
	return b
}

func id(n int) []byte { return fmt.Appendf(nil, "%016d", n) }

func (b *both) tell(r *samplerv1.SampleRequest) {
	b.t.Helper()
	if err := b.router.Send(r); err != nil {
		b.t.Fatal(err)
	}
}

func (b *both) hear() *samplerv1.SampleResponse {
	b.t.Helper()
	r, err := b.router.Recv()
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *both) push(r *samplerv1.PushRequest) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.stage.Send(r); err != nil {
		b.t.Fatal(err)
	}
}

// add adds a session and waits for the answer.
func (b *both) add(a *samplerv1.AddSession) {
	b.t.Helper()
	b.tell(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: a}})
	if b.hear().GetAdded() == nil {
		b.t.Fatal("the session is not added")
	}
}

// rows sends rows in one frame.
func (b *both) rows(rows ...*samplerv1.Row) {
	b.t.Helper()
	b.push(&samplerv1.PushRequest{Frame: &samplerv1.PushRequest_Rows{Rows: &samplerv1.Rows{Rows: rows}}})
}

// row returns a row of a session. It has the given number of best candidates, or all logits.
func row(session, position int, logits []float32, candidates int) *samplerv1.Row {
	var total float64
	for _, v := range logits {
		total += math.Exp(float64(v))
	}
	r := &samplerv1.Row{Session: id(session), Epoch: 1, Position: uint32(position), LogSumExp: math.Log(total)}
	if candidates > 0 {
		best := sample.Best(logits, candidates)
		logits = nil
		for _, c := range best {
			r.Ids, logits = append(r.Ids, uint32(c.ID)), append(logits, c.Logit)
		}
	}
	r.Logits, _ = wire.Encode(tensorv1.ElementType_ELEMENT_TYPE_F32, []int{len(logits)}, logits)
	return r
}

// logits returns logits that are similar at all positions of a seed, so that ids are repeated.
func logits(seed, position int) []float32 {
	base, r := rand.New(rand.NewPCG(uint64(seed), 0)), rand.New(rand.NewPCG(uint64(seed), uint64(1+position)))
	out := make([]float32, vocab)
	for i := range out {
		out[i] = float32(3*base.NormFloat64() + 0.5*r.NormFloat64())
	}
	return out
}

// everyRule returns sampling parameters of every kind, alone and combined.
func everyRule() []*samplerv1.Rules {
	out := []*samplerv1.Rules{
		{},
		{Temperature: 1},
		{Temperature: 0.7, TopK: 20, TopP: 0.9, RepetitionPenalty: 1.2},
		{Temperature: 1, TopP: 0.6},
		{Temperature: 1.5, MinP: 0.05},
		{TopK: 40, Temperature: 1, LogitBias: map[uint32]float32{4: -3, 9: 5}},
		{RepetitionPenalty: 1.5},
		{FrequencyPenalty: 1, PresencePenalty: 1, TopLogprobs: 3},
	}
	for _, a := range []*samplerv1.Advanced{
		{
			Mirostat: 2, MirostatTau: 1, MirostatEta: 0.5,
		}, {
			Mirostat: 1, MirostatTau: 1, MirostatEta: 0.5,
		}, {DryMultiplier: 2, DryAllowedLength: 1}, {TypicalP: 0.8}, {XtcProbability: 0.5, XtcThreshold: 0.05},
		{TopNSigma: 1.5}, {EpsilonCutoff: 0.02}, {EtaCutoff: 0.02}, {DynamicRange: 0.5}, {NoRepeatNgram: 1},
		{MinTokens: 7},
		{BadWords: []*samplerv1.Ids{{Ids: []uint32{3}}, {Ids: []uint32{3, 4}}}}, {PenaltyLastN: 3},
	} {
		out = append(out, &samplerv1.Rules{Temperature: 1, EndIds: []uint32{299}, Advanced: a})
	}
	out[len(out)-1].RepetitionPenalty = 2
	out = append(out,
		&samplerv1.Rules{Advanced: &samplerv1.Advanced{DryMultiplier: 2, DryAllowedLength: 1}},
		&samplerv1.Rules{Temperature: 1, TopK: 40,
			Advanced: &samplerv1.Advanced{DryMultiplier: 1, DryAllowedLength: 1}},
		&samplerv1.Rules{Temperature: 1, Advanced: &samplerv1.Advanced{TypicalP: 0.8, XtcProbability: 0.5}},
		&samplerv1.Rules{
			Temperature: 0.8, Advanced: &samplerv1.Advanced{Mirostat: 2, DryMultiplier: 1, XtcProbability: 0.3,
				MinTokens: 3},
			Choice: 2,
		},
		&samplerv1.Rules{
			Temperature: 1, FrequencyPenalty: 0.5,
			Advanced: &samplerv1.Advanced{NoRepeatNgram: 2,
				Order: []string{"no_repeat_ngram", "penalties", "temperature"}},
		},
	)
	for i, r := range out {
		r.Seed = uint64(i)
	}
	return out
}

// TestSample_AnotherSamplerTakesOver generates with one sampler, and then the second half again with
// another one, which is given the emitted tokens.
func TestSample_AnotherSamplerTakesOver(t *testing.T) {
	const length, moved = 12, 5
	for i, rules := range everyRule() {
		b := open(t)
		b.add(&samplerv1.AddSession{Session: id(1), Epoch: 1, Rules: rules, Prompt: []uint32{1, 2, 3}})
		var ids []uint32
		var logprobs []float32
		for at := range length {
			b.rows(row(1, 2+at, logits(i, at), 0))
			token := b.hear().GetToken()
			if token.GetPosition() != uint32(3+at) {
				t.Fatalf("rules %d: a token for position %d", i, token.GetPosition())
			}
			ids, logprobs = append(ids, token.GetId()), append(logprobs, token.GetLogprob())
		}
		other := open(t)
		other.add(
			&samplerv1.AddSession{
				Session: id(1), Epoch: 1, Rules: rules, Prompt: []uint32{1, 2, 3}, Emitted: ids[:moved],
				EmittedLogprobs: logprobs[:moved],
			},
		)
		for at := moved; at < length; at++ {
			other.rows(row(1, 2+at, logits(i, at), 0))
			if got := other.hear().GetToken().GetId(); got != ids[at] {
				t.Errorf("rules %d: token %d is %d after the move, was %d", i, at, got, ids[at])
			}
		}
	}
}

// TestSample_DroppedTokensCountAsBefore generates with one sampler, and then the second half again on
// one whose rows have lower positions, as after a context policy has dropped tokens. With the same
// logits the tokens are the same under all rules, seeded ones too: nothing is drawn twice.
func TestSample_DroppedTokensCountAsBefore(t *testing.T) {
	const length, moved, dropped = 12, 5, 4
	prompt := []uint32{1, 2, 3}
	for i, rules := range everyRule() {
		rules.MaxTokens = length
		b := open(t)
		b.add(&samplerv1.AddSession{Session: id(1), Epoch: 1, Rules: rules, Prompt: prompt})
		var ids []uint32
		var logprobs []float32
		for at := range length {
			b.rows(row(1, 2+at, logits(i, at), 0))
			token := b.hear().GetToken()
			ids, logprobs = append(ids, token.GetId()), append(logprobs, token.GetLogprob())
		}
		other := open(t)
		other.add(&samplerv1.AddSession{
			Session: id(1), Epoch: 1, Rules: rules, Prompt: prompt, Emitted: ids[:moved],
			EmittedLogprobs: logprobs[:moved], Dropped: dropped,
		})
		for at := moved; at < length; at++ {
			other.rows(row(1, 2+at-dropped, logits(i, at), 0))
			token := other.hear().GetToken()
			if token.GetId() != ids[at] || token.GetPosition() != uint32(3+at-dropped) {
				t.Errorf("rules %d: token %d is %d at %d, was %d", i, at, token.GetId(), token.GetPosition(), ids[at])
			}
			ended := token.GetFinishReason() == samplerv1.FinishReason_FINISH_REASON_LENGTH
			if ended != (at == length-1) {
				t.Errorf("rules %d: token %d ends: %v", i, at, ended)
			}
		}
	}
}

func TestSample_EndIDsMaximumAndMinimumLength(t *testing.T) {
	b := open(t)
	x := logits(2, 2)
	end := uint32(sample.Best(x, 1)[0].ID)
	b.add(
		&samplerv1.AddSession{
			Session: id(1), Epoch: 1,
			Rules: &samplerv1.Rules{EndIds: []uint32{end}, Advanced: &samplerv1.Advanced{MinTokens: 2}},
		},
	)
	for at := range 3 {
		b.rows(row(1, at, x, 10))
		token := b.hear().GetToken()
		stopped := token.GetFinishReason() == samplerv1.FinishReason_FINISH_REASON_STOP
		if (token.GetId() == end) != (at == 2) || stopped != (at == 2) {
			t.Errorf("token %d is %d, %v", at, token.GetId(), token.GetFinishReason())
		}
	}
}

// refusals returns sampling parameters that the sampler refuses, by the field that the error names.
func refusals() map[string]*samplerv1.Rules {
	gbnf := func(source string) *samplerv1.Rules {
		return &samplerv1.Rules{Grammar: &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_GBNF,
			Source: source}}
	}
	regex := gbnf(`(a+)+$(a+)+$`)
	regex.Grammar.Kind = samplerv1.GrammarKind_GRAMMAR_KIND_REGEX
	foreign := gbnf(`root ::= "\u00e9"`) // no token has these bytes
	kind := gbnf("")
	kind.Grammar.Kind = 99
	return map[string]*samplerv1.Rules{
		"temperature": {Temperature: -1}, "top_p": {TopP: 2}, "advanced.mirostat": {
			Advanced: &samplerv1.Advanced{Mirostat: 3},
		},
		"advanced.order": {
			TopK: 3, Advanced: &samplerv1.Advanced{Order: []string{"min_p"}},
		}, "top_logprobs": {TopLogprobs: 21},
		"logit_bias": {LogitBias: map[uint32]float32{1 << 31: 1}}, "end_ids": {EndIds: []uint32{math.MaxUint32}},
		"advanced.bad_words[0]": {Advanced: &samplerv1.Advanced{BadWords: []*samplerv1.Ids{{}}}},
		"grammar.source":        regex, "grammar.source ": foreign, "grammar.source  ": gbnf("root ::= root"),
		"grammar.kind": kind,
	}
}

// TestSample_RefusesOneSessionAndGoesOn adds sessions that are refused between others, on one
// stream.
func TestSample_RefusesOneSessionAndGoesOn(t *testing.T) {
	b := open(t)
	tokens := make([][]byte, vocab)
	for c := range 128 {
		tokens[c] = []byte{byte(c)}
	}
	b.tell(
		&samplerv1.SampleRequest{
			Frame: &samplerv1.SampleRequest_Tokens{Tokens: &samplerv1.Tokens{Digest: "d", Size: vocab, Tokens: tokens}},
		},
	)
	n := 1
	for field, rules := range refusals() {
		add := &samplerv1.AddSession{Session: id(n), Epoch: 7, Rules: rules, Vocabulary: "d"}
		b.tell(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: add}})
		f := b.hear().GetFailed()
		if got := codes.Code(f.GetCode()); got != codes.InvalidArgument || f.GetField() != strings.TrimSpace(field) ||
			f.GetEpoch() != 7 || !slices.Equal(f.GetSession(), id(n)) {
			t.Errorf("%s: %v", field, f)
		}
		b.add(&samplerv1.AddSession{Session: id(n + 1), Epoch: 1, Rules: &samplerv1.Rules{}})
		b.rows(row(n+1, 3, logits(n, 3), 5))
		if b.hear().GetToken() == nil {
			t.Fatalf("after %s a session gets no token", field)
		}
		n += 2
	}
	add := &samplerv1.AddSession{
		Session: id(n), Epoch: 1, Rules: &samplerv1.Rules{Grammar: &samplerv1.Grammar{Kind: 1, Source: `root ::= "a"`}},
		Vocabulary: "unknown",
	}
	b.tell(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: add}})
	if f := b.hear().GetFailed(); codes.Code(f.GetCode()) != codes.FailedPrecondition {
		t.Errorf("a vocabulary that was not sent: %v", f)
	}
}

// TestSample_DropsVocabularyWithAGap sends a part of a vocabulary that leaves a gap.
func TestSample_DropsVocabularyWithAGap(t *testing.T) {
	b := open(t)
	b.tell(
		&samplerv1.SampleRequest{
			Frame: &samplerv1.SampleRequest_Tokens{
				Tokens: &samplerv1.Tokens{Digest: "d", Size: vocab, First: 5, Tokens: [][]byte{{1}}},
			},
		},
	)
	b.add(&samplerv1.AddSession{Session: id(1), Epoch: 1, Rules: &samplerv1.Rules{}})
}

// TestSample_RemovedWhileItsGrammarCompiles_IsNotAdded removes a session at once.
func TestSample_RemovedWhileItsGrammarCompiles_IsNotAdded(t *testing.T) {
	b := open(t)
	b.tell(
		&samplerv1.SampleRequest{
			Frame: &samplerv1.SampleRequest_Tokens{
				Tokens: &samplerv1.Tokens{Digest: "d", Size: 1, Tokens: [][]byte{[]byte("a")}},
			},
		},
	)
	for n := range 50 {
		source := fmt.Sprintf(`root ::= "a"{1,%d}`, 100+n)
		b.tell(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: &samplerv1.AddSession{
			Session: id(1), Epoch: 1, Vocabulary: "d", Rules: &samplerv1.Rules{
				Grammar: &samplerv1.Grammar{Kind: 1, Source: source},
			},
		}}})
		b.tell(
			&samplerv1.SampleRequest{
				Frame: &samplerv1.SampleRequest_Remove{Remove: &samplerv1.RemoveSession{Session: id(1)}},
			},
		)
	}
	b.tell(
		&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: &samplerv1.AddSession{Session: id(2),
			Epoch: 1}}},
	)
	for {
		r := b.hear()
		if name := r.GetAdded().GetSession(); slices.Equal(name, id(2)) {
			break
		} else if !slices.Equal(name, id(1)) { // the grammar was compiled before the removal arrived
			t.Fatalf("got %v", r)
		}
	}
	b.rows(row(1, 3, logits(1, 3), 5), row(2, 3, logits(1, 3), 5))
	if got := b.hear().GetToken().GetSession(); !slices.Equal(got, id(2)) {
		t.Errorf("a token for %s", got)
	}
}

// TestSample_GrammarConstrainsText uses a vocabulary of single characters and rows that prefer
// tokens outside the grammar.
func TestSample_GrammarConstrainsText(t *testing.T) {
	b := open(t)
	tokens := make([][]byte, vocab)
	for c := range 128 {
		tokens[c] = []byte{byte(c)}
	}
	tokens[200], tokens[201] = []byte("12"), []byte("-3")
	b.tell(
		&samplerv1.SampleRequest{
			Frame: &samplerv1.SampleRequest_Tokens{Tokens: &samplerv1.Tokens{Digest: "d", Size: vocab,
				Tokens: tokens[:150]}},
		},
	)
	b.tell(
		&samplerv1.SampleRequest{
			Frame: &samplerv1.SampleRequest_Tokens{
				Tokens: &samplerv1.Tokens{Digest: "d", Size: vocab, First: 150, Tokens: tokens[150:]},
			},
		},
	)
	b.add(&samplerv1.AddSession{Session: id(1), Epoch: 1, Vocabulary: "d", Rules: &samplerv1.Rules{
		EndIds: []uint32{299}, Grammar: &samplerv1.Grammar{
			Kind: samplerv1.GrammarKind_GRAMMAR_KIND_REGEX, Source: `[0-9]{3}-[0-9]{2}`,
		},
	}})
	var text []byte
	for at := range 10 {
		b.rows(row(1, at, logits(3, at), 0))
		token := b.hear().GetToken()
		if token.GetFinishReason() == samplerv1.FinishReason_FINISH_REASON_STOP {
			break
		}
		text = append(text, tokens[token.GetId()]...)
	}
	if len(text) != 6 || text[3] != '-' || strings.Trim(string(text), "0123456789-") != "" {
		t.Errorf("the text is %q", text)
	}
}
