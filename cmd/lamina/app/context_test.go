package app_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/internal/leak"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/session"
)

// events reads a stream to its end.
func events[T interface {
	GetStarted() *routerv1.Started
	GetToken() *routerv1.TokenEvent
	GetFinished() *routerv1.Finished
}](recv func() (T, error), each func(n int)) (h held, err error) {
	for {
		e, err := recv()
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return h, err
		}
		switch {
		case e.GetStarted() != nil:
			h.started = e.GetStarted()
		case e.GetToken() != nil:
			h.ids = append(h.ids, int32(e.GetToken().GetId()))
			h.text += e.GetToken().GetText()
			if each != nil {
				each(len(h.ids))
			}
		case e.GetFinished() != nil:
			h.finished = e.GetFinished()
			h.text += e.GetFinished().GetText()
		}
	}
}

// held is an answer.
type held struct {
	started  *routerv1.Started
	finished *routerv1.Finished
	ids      []int32
	text     string
}

// log returns the prompt and the answer.
func (h held) log() []int32 {
	var log []int32
	for _, id := range h.started.GetPromptIds() {
		log = append(log, int32(id))
	}
	return append(log, h.ids...)
}

func generateHeld(ctx context.Context, router routerv1.RouterServiceClient, r *routerv1.GenerateRequest,
	each func(n int)) (held, error) {
	stream, err := router.Generate(ctx, r)
	if err != nil {
		return held{}, err
	}
	return events(stream.Recv, each)
}

func chatHeld(ctx context.Context, router routerv1.RouterServiceClient, r *routerv1.ChatRequest) (held, error) {
	stream, err := router.Chat(ctx, r)
	if err != nil {
		return held{}, err
	}
	return events(stream.Recv, nil)
}

const (
	slideMode    = routerv1.ContextMode_CONTEXT_MODE_SLIDE
	truncateMode = routerv1.ContextMode_CONTEXT_MODE_TRUNCATE_MIDDLE
)

// TestMesh_Slide_SameBytesOverSplitsAndLostPipelines generates far beyond the context length, under
// sampling parameters whose state spans the slides. The greedy answer is compared with a model that is
// given the kept tokens alone.
func TestMesh_Slide_SameBytesOverSplitsAndLostPipelines(t *testing.T) {
	defer leak.Check(t)
	const length, sinks, window, tokens = 96, 4, 40, 230
	zero, seed := float32(0), uint64(7)
	kinds := []*routerv1.Sampling{
		{Temperature: &zero},
		{Seed: &seed},
		{Seed: &seed, TopP: proto.Float32(0.95), RepetitionPenalty: proto.Float32(1.1)},
		{Seed: &seed, FrequencyPenalty: 0.5, PresencePenalty: 0.25},
		{Seed: &seed, Advanced: &samplerv1.Advanced{Mirostat: 2, MirostatTau: 4}},
		{Seed: &seed, Grammar: &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_REGEX,
			Source: `( ?[a-z]+[.,]?){400,}`}},
	}
	set := cpu.New(2)
	defer set.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var want []held
	for _, c := range []struct {
		stages, replicas, speculate, chunk int
		cut                                bool
	}{{stages: 1, replicas: 1}, {stages: 3, replicas: 1, speculate: 4, chunk: 7}, {stages: 2, replicas: 2, cut: true}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			m, router := startMesh(t, ctx, app.MeshConfig{
				Model: shared(t, "models/stories260K/stories260K-f32.gguf"), Stages: c.stages, Replicas: c.replicas,
				Kernels: app.Kernels{Set: set, Threads: 2}, Speculation: app.Speculation{IDs: c.speculate},
				Scheduling: app.Scheduling{ChunkRows: c.chunk},
			})
			got := make([]held, len(kinds))
			var cut sync.Once
			var wg sync.WaitGroup
			for i, s := range kinds {
				wg.Go(func() {
					var err error
					got[i], err = generateHeld(ctx, router, &routerv1.GenerateRequest{
						Prompt:    &routerv1.GenerateRequest_Text{Text: "Once upon a time"},
						MaxTokens: tokens, Sampling: s, IgnoreEnd: true,
						ContextPolicy: &routerv1.ContextPolicy{Mode: slideMode, Length: length, Window: window},
					}, func(n int) {
						// The log of each stream fills the context at about this token.
						if c.cut && i == 0 && n == length-5 {
							cut.Do(func() { m.Cut("shard-0-1") })
						}
					})
					if err != nil {
						t.Errorf("request %d: %v", i, err)
					}
				})
			}
			wg.Wait()
			if want == nil {
				want = got
				checkWindows(t, ctx, router, got[0], session.Slide{Length: length, Sinks: sinks, Window: window})
			}
			for i := range got {
				if !slices.Equal(got[i].ids, want[i].ids) || got[i].text != want[i].text || len(got[i].ids) != tokens {
					t.Errorf("request %d: %d tokens %q, want %q", i, len(got[i].ids), got[i].text, want[i].text)
				}
				if !proto.Equal(got[i].finished.GetContext(), want[i].finished.GetContext()) ||
					got[i].finished.GetContext().GetDropped()[0].GetCount() != 3*(length-sinks-window) {
					t.Errorf("request %d: %v", i, got[i].finished.GetContext())
				}
			}
		})
	}
	if same := slices.Equal(want[1].ids, want[2].ids); same {
		t.Error("the penalty changes nothing")
	}
}

// checkWindows compares an answer, part by part, with greedy answers to the tokens that the model sees.
func checkWindows(t *testing.T, ctx context.Context, router routerv1.RouterServiceClient, h held, s session.Slide) {
	t.Helper()
	log, zero := h.log(), float32(0)
	prompt := len(h.started.GetPromptIds())
	for at := prompt; at < len(log); {
		to := at + 1
		for to < len(log) && s.Dropped(to) == s.Dropped(at) {
			to++
		}
		r := &routerv1.GenerateRequest{MaxTokens: uint32(to - at), IgnoreEnd: true,
			Sampling: &routerv1.Sampling{Temperature: &zero}}
		view := &routerv1.TokenIds{}
		for _, id := range s.View(log[:at]) {
			view.Ids = append(view.Ids, uint32(id))
		}
		r.Prompt = &routerv1.GenerateRequest_TokenIds{TokenIds: view}
		alone, err := generateHeld(ctx, router, r, nil)
		if err != nil || !slices.Equal(alone.ids, log[at:to]) {
			t.Errorf("tokens %d to %d are not those after the %d kept tokens alone: %v", at, to, len(view.Ids), err)
		}
		at = to
	}
}

// TestMesh_TruncateMiddle_DropsWholeTurns shortens a chat: the answer is that to the kept messages.
func TestMesh_TruncateMiddle_DropsWholeTurns(t *testing.T) {
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	_, router := startMesh(t, ctx, app.MeshConfig{
		Model:  shared(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"),
		Stages: 2, Kernels: app.Kernels{Set: set, Threads: 2},
	})
	zero := float32(0)
	messages := []*tokenizerv1.Message{
		{Role: "system", Content: "You answer in one short sentence, as a pirate would."},
	}
	for i := range 12 {
		messages = append(
			messages,
			&tokenizerv1.Message{
				Role:    "user",
				Content: fmt.Sprintf("Question %d: how many ships does the fleet have?", i),
			},
			&tokenizerv1.Message{Role: "assistant", Content: fmt.Sprintf("Arr, matey, the fleet has %d ships.", i)},
		)
	}
	messages = append(messages, &tokenizerv1.Message{Role: "user", Content: "What is the capital of France?"})
	chat := func(messages []*tokenizerv1.Message, p *routerv1.ContextPolicy, n uint32) held {
		t.Helper()
		h, err := chatHeld(ctx, router, &routerv1.ChatRequest{
			Messages: messages, MaxTokens: n, Sampling: &routerv1.Sampling{Temperature: &zero}, ContextPolicy: p,
		})
		if err != nil {
			t.Fatalf("%v: %v", p, err)
		}
		return h
	}
	whole := chat(messages, nil, 1).started.GetPromptIds()
	got := chat(messages, &routerv1.ContextPolicy{Mode: truncateMode, Length: 200}, 20)
	use := got.started.GetContext()
	dropped := use.GetDroppedMessages()
	if dropped.GetFirst() != 1 || dropped.GetCount() == 0 || dropped.GetCount()%2 != 0 {
		t.Fatalf("dropped %v", use)
	}
	kept := slices.Concat(messages[:1], messages[1+dropped.GetCount():])
	want := chat(kept, nil, 20)
	if !slices.Equal(got.started.GetPromptIds(), want.started.GetPromptIds()) || got.text != want.text {
		t.Errorf("%q after %d tokens, want %q after %d", got.text, len(got.started.GetPromptIds()), want.text,
			len(want.started.GetPromptIds()))
	}
	span := use.GetDropped()[0]
	if len(got.started.GetPromptIds()) > 180 || !slices.Equal(got.started.GetPromptIds(),
		slices.Concat(whole[:span.GetFirst()], whole[span.GetFirst()+span.GetCount():])) {
		t.Errorf("%d prompt tokens of %d: %v", len(got.started.GetPromptIds()), len(whole), use)
	}
	// One turn more would not have fitted.
	if more := slices.Concat(messages[:1], messages[dropped.GetCount()-1:]); len(chat(more, nil, 1).started.
		GetPromptIds()) <= 180 {
		t.Errorf("a turn was dropped in vain: %v", use)
	}
	// The last turn alone is too long: its middle goes, and the system message stays.
	long := slices.Concat(
		messages[:3],
		[]*tokenizerv1.Message{{Role: "user", Content: strings.Repeat("sail on ", 200)}},
	)
	got = chat(long, &routerv1.ContextPolicy{Mode: truncateMode, Length: 100}, 20)
	ids := got.started.GetPromptIds()
	all := chat(long, nil, 1).started.GetPromptIds()
	cut := got.started.GetContext().GetDropped()
	rest := slices.Clone(all)
	for _, d := range slices.Backward(cut) {
		rest = slices.Concat(rest[:d.GetFirst()], rest[d.GetFirst()+d.GetCount():])
	}
	if len(ids) != 80 || !slices.Equal(ids, rest) || got.started.GetContext().GetDroppedMessages().GetCount() != 2 {
		t.Errorf("%d tokens, %v", len(ids), got.started.GetContext())
	}
	// A chat that slides keeps its system message.
	slid := chat(messages, &routerv1.ContextPolicy{Mode: slideMode, Length: 200}, 120)
	if u := slid.started.GetContext(); int(u.GetSinks()) < len(chat(messages[:1], nil, 1).started.GetPromptIds())-6 ||
		u.GetSinks() > 30 || len(slid.ids) == 0 {
		t.Errorf("the chat slides with %v", u)
	}
}

// TestMesh_NineThousandTokens_UnderEveryPolicy sends 9,000 tokens to a model with a context of 8,192.
func TestMesh_NineThousandTokens_UnderEveryPolicy(t *testing.T) {
	if os.Getenv("LAMINA_SLOW") == "" {
		t.Skip("computes 11,000 positions: set LAMINA_SLOW")
	}
	set := cpu.New(2)
	t.Cleanup(set.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Minute)
	t.Cleanup(cancel)
	zero := float32(0)
	ids := &routerv1.TokenIds{}
	for i := range uint32(9000) {
		ids.Ids = append(ids.Ids, 1000+i*i%40000)
	}
	answers := map[routerv1.ContextMode][]held{}
	for _, stages := range []int{1, 3} {
		t.Run(fmt.Sprint(stages, " stages"), func(t *testing.T) {
			_, router := startMesh(t, ctx, app.MeshConfig{
				Model:  shared(t, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"),
				Stages: stages, KVPositions: 9216, Kernels: app.Kernels{Set: set, Threads: 2},
			})
			r := &routerv1.GenerateRequest{
				Prompt: &routerv1.GenerateRequest_TokenIds{TokenIds: ids}, MaxTokens: 8, IgnoreEnd: true,
				Sampling: &routerv1.Sampling{Temperature: &zero},
			}
			if _, err := generateHeld(ctx, router, r, nil); status.Code(err) != codes.OutOfRange ||
				!strings.Contains(err.Error(), "9000") || !strings.Contains(err.Error(), "8192") {
				t.Errorf("stop: %v", err)
			}
			for _, mode := range []routerv1.ContextMode{slideMode, truncateMode} {
				start := time.Now()
				r.ContextPolicy = &routerv1.ContextPolicy{Mode: mode}
				h, err := generateHeld(ctx, router, r, nil)
				if err != nil || len(h.ids) != 8 {
					t.Fatalf("%v: %d tokens, %v", mode, len(h.ids), err)
				}
				t.Logf("%v: %v, %v", mode, h.started.GetContext(), time.Since(start).Round(time.Millisecond))
				answers[mode] = append(answers[mode], h)
			}
		})
	}
	for mode, a := range answers {
		if len(a) == 2 && !slices.Equal(a[0].ids, a[1].ids) {
			t.Errorf("%v: %v over 1 stage, %v over 3", mode, a[0].ids, a[1].ids)
		}
	}
}
