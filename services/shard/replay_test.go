package shard_test

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// rowsOf returns how many rows each stage has computed.
func (r *inferRig) rowsOf() (rows []int) {
	r.t.Helper()
	for _, h := range r.held() {
		rows = append(rows, int(h.GetRows()))
	}
	return rows
}

// TestInfer_ReplayRebuildsAStage loses each stage of a chain in turn. The shard in its place computes the
// log again, the stages before it compute it for that, and those after it compute nothing.
func TestInfer_ReplayRebuildsAStage(t *testing.T) {
	const stages, at = 3, 2*pageLen + 5 // the last page is not full
	log, s := someIDs(3*pageLen), sessionName(1)
	for lost := range stages {
		for _, chunk := range []int{at, 7} {
			t.Run(fmt.Sprintf("stage %d in chunks of %d", lost, chunk), func(t *testing.T) {
				r := newInferRig(t, stages, 0)
				p := r.mustOpenEpoch(pipelineName(1), 1)
				p.compute(&shardv1.Entry{Session: s, Epoch: 1, Pages: pageIDs(4, 7)}, log[:at])
				want := p.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: at}, log[at:])

				hop := r.route[lost]
				r.network.Cut(fmt.Sprintf("shard-%d", lost), true)
				_ = p.over()
				r.hold(lost, "mem:spare", hop.GetLo(), hop.GetHi())
				p = r.reopen(pipelineName(1), 2)
				for i, resumed := range p.resumed() {
					if resumed != (i != lost) {
						t.Fatalf("resumed %v", p.resumed())
					}
				}
				before := r.rowsOf()
				for from := 0; from < at; from += chunk {
					end := min(at, from+chunk)
					e := &shardv1.Entry{Session: s, Epoch: 1, Position: uint32(from), Rows: uint32(end - from)}
					if from == 0 {
						e.Pages = pageIDs(4, 7)
					}
					step := p.replay(hop.GetHi(), log[from:end], e)
					if c := await(p, p.frames, "the end of a replay").GetComputed(); c.GetStep() != step {
						t.Fatalf("a replay was answered by %v", c)
					}
				}
				for i, rows := range r.rowsOf() {
					if n := rows - before[i]; i <= lost && n != at || i > lost && n != 0 {
						t.Errorf("stage %d has computed %d rows of the replay of %d", i, n, at)
					}
				}
				got := p.compute(&shardv1.Entry{Session: s, Epoch: 1, Position: at, Pages: pageIDs(4, 7)}, log[at:])
				if !slices.Equal(got, want) {
					t.Error("other bits after the replay")
				}
				p.end()
				for _, h := range r.held() {
					if h.GetKvPagesUsed() != 0 || h.GetSessions() != 0 {
						t.Errorf("the pipeline left something: %v", h)
					}
				}
			})
		}
	}
}

// TestInfer_ReplaysThatCannotBe covers replays that end nowhere, and ones that want logits.
func TestInfer_ReplaysThatCannotBe(t *testing.T) {
	r := newInferRig(t, 2, 0)
	log, s := someIDs(5), sessionName(1)
	p := r.mustOpen(pipelineName(1))
	e := &shardv1.Entry{Session: s, Epoch: 1, Rows: 5, Logits: 1, Pages: pageIDs(0, 1)}
	step := p.replay(r.route[0].GetHi(), log, e)
	f := await(p, p.frames, "a refusal").GetRefused()
	if codes.Code(f.GetCode()) != codes.InvalidArgument || f.GetStep() != step {
		t.Errorf("a replay with logits: %v", f)
	}
	if c := await(p, p.frames, "the end of the batch").GetComputed(); c.GetStep() != step {
		t.Errorf("after the refusal: %v", c)
	}
	for _, until := range []uint32{r.route[0].GetHi() - 1, r.route[0].GetHi() + 1, r.route[1].GetHi() + 1} {
		p := r.mustOpen(pipelineName(int(until) + 10))
		p.replay(until, log, &shardv1.Entry{Session: s, Epoch: 1, Rows: 5, Pages: pageIDs(0, 1)})
		if err := p.over(); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("a replay until layer %d ended with %v", until, err)
		}
	}
	p.end()
}
