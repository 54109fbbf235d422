package sampler_test

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sample"
	"github.com/lamina-mesh/lamina/services/sampler"
)

// TestPush_CandidatesGiveTheSameTokenAsTheFullRow sends few candidates, and the full logits row when it is
// asked for.
func TestPush_CandidatesGiveTheSameTokenAsTheFullRow(t *testing.T) {
	asked := 0
	for i, rules := range everyRule() {
		b := open(t)
		for session := range 2 {
			b.add(&samplerv1.AddSession{Session: id(1 + session), Epoch: 1, Rules: rules, Prompt: []uint32{7}})
		}
		var answering sync.WaitGroup
		answering.Go(func() {
			for {
				r, err := b.stage.Recv()
				if err != nil {
					return
				}
				asked++
				at := int(r.GetRowWanted().GetPosition())
				b.rows(row(2, at, logits(i, at), 0))
			}
		})
		for at := range 10 {
			b.rows(row(1, at, logits(i, at), 0))
			want := b.hear().GetToken()
			b.rows(row(2, at, logits(i, at), 30))
			if got := b.hear().GetToken(); got.GetId() != want.GetId() || got.GetLogprob() != want.GetLogprob() {
				t.Errorf("rules %d: position %d is %v from candidates, %v from the row", i, at, got, want)
			}
		}
		if err := b.stage.CloseSend(); err != nil {
			t.Fatal(err)
		}
		answering.Wait()
	}
	if asked == 0 {
		t.Error("no full logits row was asked for")
	}
}

func TestPush_ManySessionsInAFrame(t *testing.T) {
	b, rows := open(t), []*samplerv1.Row(nil)
	for s := range 256 {
		b.add(&samplerv1.AddSession{Session: id(s), Epoch: 1, Rules: &samplerv1.Rules{}})
		rows = append(rows, row(s, 4, logits(s, 0), 5))
	}
	b.rows(rows...)
	for s := range 256 {
		token := b.hear().GetToken()
		if want := sample.Best(logits(s, 0), 1)[0].ID; !slices.Equal(token.GetSession(), id(s)) ||
			token.GetId() != uint32(want) {
			t.Fatalf("session %d gets %v, want %d", s, token, want)
		}
	}
}

// TestPush_BytesAreCounted compares the counter with what was sent.
func TestPush_BytesAreCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	b := openOn(t, sampler.New(sampler.Config{Metrics: registry}))
	b.add(&samplerv1.AddSession{Session: id(1), Epoch: 1, Rules: &samplerv1.Rules{}})
	want, tokens := 0.0, 0.0
	for at, candidates := range []int{1, 20, 0} {
		r := row(1, at, logits(1, at), candidates)
		want += float64(
			proto.Size(
				&samplerv1.PushRequest{
					Frame: &samplerv1.PushRequest_Rows{Rows: &samplerv1.Rows{Rows: []*samplerv1.Row{r}}},
				},
			),
		)
		tokens++
		b.rows(r)
		b.hear()
	}
	got := map[string]float64{}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C { // a token may come before it is counted
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			got[f.GetName()] = f.GetMetric()[0].GetCounter().GetValue()
		}
		if got["lamina_sampler_row_bytes_total"] == want && got["lamina_sampler_tokens_total"] == tokens {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("counted %v, want %v bytes and %v tokens", got, want, tokens)
		}
	}
}

func TestPush_RowsThatNobodyWaitsForAreIgnored(t *testing.T) {
	b := open(t)
	b.add(&samplerv1.AddSession{Session: id(1), Epoch: 2, Rules: &samplerv1.Rules{}})
	x := logits(1, 1)
	best := uint32(sample.Best(x, 1)[0].ID)
	stale, unknown, wrong, right := row(1, 3, x, 2), row(9, 3, x, 2), row(1, 5, x, 2), row(1, 5, logits(1, 2), 2)
	other := best + 1
	wrong.Epoch, wrong.DraftId = 2, &other
	right.Epoch, right.DraftId = 2, &best
	first := row(1, 4, x, 2)
	first.Epoch = 2
	// An earlier epoch, a session that nobody added, a rejected draft token: no token.
	b.rows(stale, unknown, first, wrong, right)
	for _, position := range []uint32{5, 6} {
		if token := b.hear().GetToken(); token.GetPosition() != position {
			t.Fatalf("a token for position %d, want %d", token.GetPosition(), position)
		}
	}
}

// A row of an epoch under which the session was not added yet belongs to another log than the session's.
func TestSample_RowAheadOfItsSession_EndsTheSession(t *testing.T) {
	b := open(t)
	b.add(&samplerv1.AddSession{Session: id(1), Epoch: 1, Rules: &samplerv1.Rules{}})
	early := row(1, 4, logits(1, 1), 2)
	early.Epoch = 2
	b.rows(early)
	f := b.hear().GetFailed()
	if f.GetEpoch() != 2 || codes.Code(f.GetCode()) != codes.FailedPrecondition {
		t.Fatalf("answer %v, want FAILED_PRECONDITION for epoch 2", f)
	}
	b.tell(&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: &samplerv1.AddSession{
		Session: id(1), Epoch: 2, Rules: &samplerv1.Rules{},
	}}})
	if added := b.hear().GetAdded(); added.GetEpoch() != 2 {
		t.Fatalf("added %v, want epoch 2", added)
	}
}

// TestPush_BadRowEndsItsSessionAlone sends rows that cannot be read between others.
func TestPush_BadRowEndsItsSessionAlone(t *testing.T) {
	b := open(t)
	bad := map[string]*samplerv1.Row{}
	for _, name := range []string{"not a number", "no logits", "short row", "foreign id", "ids without logits"} {
		bad[name] = row(1, 3, logits(1, 3), 5)
	}
	bad["not a number"].LogSumExp = math.NaN()
	bad["no logits"].Logits = nil
	bad["short row"].Ids = nil
	bad["foreign id"].Ids[2] = math.MaxUint32
	bad["ids without logits"].Ids = append(bad["ids without logits"].Ids, 7)
	for name, r := range bad {
		b.add(&samplerv1.AddSession{Session: id(1), Epoch: 1, Rules: &samplerv1.Rules{}})
		b.add(&samplerv1.AddSession{Session: id(2), Epoch: 1, Rules: &samplerv1.Rules{}})
		b.rows(r, row(2, 3, logits(2, 3), 5))
		if f := b.hear().GetFailed(); codes.Code(f.GetCode()) != codes.Internal ||
			!slices.Equal(f.GetSession(), id(1)) {
			t.Errorf("%s: %v", name, f)
		}
		if got := b.hear().GetToken().GetSession(); !slices.Equal(got, id(2)) {
			t.Errorf("%s: a token for %s", name, got)
		}
		for n := 1; n <= 2; n++ {
			b.tell(
				&samplerv1.SampleRequest{
					Frame: &samplerv1.SampleRequest_Remove{Remove: &samplerv1.RemoveSession{Session: id(n)}},
				},
			)
		}
	}
}
