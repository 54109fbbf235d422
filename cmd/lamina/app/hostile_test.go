package app_test

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tensorv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tensor/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// mutate damages the wire form of a message such that it still parses: fields are changed, repeated,
// removed or enlarged.
func mutate(r *rand.Rand, m proto.Message) proto.Message {
	raw, err := proto.Marshal(m)
	if err != nil || len(raw) == 0 {
		return m
	}
	for range 20 {
		out := append([]byte(nil), raw...)
		for range 1 + r.IntN(3) {
			at := r.IntN(len(out))
			switch r.IntN(4) {
			case 0:
				out[at] ^= 1 << r.IntN(8)
			case 1:
				out[at] = byte(r.Uint32())
			case 2:
				out = append(out[:at:at], out[min(len(out), at+1+r.IntN(4)):]...)
			case 3:
				out = append(out, raw[r.IntN(len(raw)):]...)
			}
			if len(out) == 0 {
				break
			}
		}
		fresh := m.ProtoReflect().New().Interface()
		if proto.Unmarshal(out, fresh) == nil {
			return fresh
		}
	}
	return m
}

// seeds returns valid conversations by method.
func seeds(digest string) map[string][]proto.Message {
	id := make([]byte, 16)
	tensor := &tensorv1.Tensor{ElementType: 1, Shape: []uint32{1, 64}, Size: 256, Data: make([]byte, 256)}
	modules := []*shardv1.AdapterModule{{Name: "model.layers.0.self_attn.q_proj", Rank: 1, Scale: 1, Inputs: 64,
		Outputs: 64, ADigest: make([]byte, 32), BDigest: make([]byte, 32)}}
	sum := wire.Outline(modules, nil).Digest()
	return map[string][]proto.Message{
		"/lamina.shard.v1.ShardService/Infer": {
			&shardv1.InferRequest{Frame: &shardv1.InferRequest_Open{Open: &shardv1.InferOpen{
				Pipeline: id, Digest: digest, Route: []*shardv1.Hop{
					{Address: "mem:shard-0-0", Lo: 0, Hi: 2}, {Address: "mem:shard-0-1", Lo: 2, Hi: 5},
				}, Sampler: "mem:sampler",
			}}},
			&shardv1.InferRequest{Frame: &shardv1.InferRequest_Batch{Batch: &shardv1.Batch{
				Step: 1, Entries: []*shardv1.Entry{
					{Session: id, Epoch: 1, Rows: 2, Logits: 1, Candidates: 4},
				}, Ids: []uint32{1, 2}, Hidden: tensor,
			}}},
			&shardv1.InferRequest{Frame: &shardv1.InferRequest_Chunk{Chunk: &tensorv1.Chunk{Offset: 3,
				Data: []byte{1, 2}}}},
			&shardv1.InferRequest{Frame: &shardv1.InferRequest_Release{Release: &shardv1.Release{Sessions: [][]byte{id,
				nil}}}},
		},
		"/lamina.shard.v1.ShardService/LoadAdapter": {
			&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Open{Open: &shardv1.LoadAdapterOpen{
				Digest: digest, Lo: 0, Hi: 2, Adapter: sum[:], Name: "a", Modules: modules,
			}}},
			&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Tensor{Tensor: tensor}},
			&shardv1.LoadAdapterRequest{Frame: &shardv1.LoadAdapterRequest_Chunk{Chunk: &tensorv1.Chunk{Offset: 3,
				Data: []byte{1, 2}}}},
		},
		"/lamina.shard.v1.ShardService/UnloadAdapter": {
			&shardv1.UnloadAdapterRequest{Digest: digest, Lo: 0, Hi: 2, Adapter: make([]byte, 32)},
		},
		"/lamina.router.v1.RouterService/LoadAdapter": {
			&routerv1.LoadAdapterRequest{Frame: &routerv1.LoadAdapterRequest_Open{Open: &routerv1.LoadAdapterOpen{
				Name: "a", Config: []byte(`{"r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}`), Size: 16, Digest: "",
			}}},
			&routerv1.LoadAdapterRequest{Frame: &routerv1.LoadAdapterRequest_Data{Data: make([]byte, 16)}},
		},
		"/lamina.router.v1.RouterService/UnloadAdapter": {
			&routerv1.UnloadAdapterRequest{Model: digest, Name: "a"},
		},
		"/lamina.shard.v1.ShardService/Train": {
			&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Open{Open: &shardv1.TrainOpen{
				Run:           "r",
				Chain:         id,
				Stages:        1,
				Replicas:      1,
				Spans:         []*shardv1.Span{{Hi: 1}},
				Slots:         2,
				Schedule:      "1f1b",
				SlotSequences: 1,
				SequenceLen:   4,
				Optimizer: &shardv1.Optimizer{Name: "adamw",
					Adamw: &shardv1.AdamW{Beta1: 0.9, Beta2: 0.9, Epsilon: 1e-8}},
				ConfigJson: []byte(
					`{"model_type":"llama","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":8,"vocab_size":16,"max_position_embeddings":8}`,
				),
			}}},
			&shardv1.TrainRequest{
				Frame: &shardv1.TrainRequest_Step{Step: &shardv1.Step{Step: 1, Slots: []uint32{0, 1}, Targets: 8}},
			},
			&shardv1.TrainRequest{
				Frame: &shardv1.TrainRequest_Microbatch{
					Microbatch: &shardv1.Microbatch{
						Step: 1, Sequences: 1, Length: 4, Ids: []uint32{1, 2, 3, 4}, Targets: []int32{2, 3, 4, 5},
					},
				},
			},
			&shardv1.TrainRequest{
				Frame: &shardv1.TrainRequest_Microbatch{
					Microbatch: &shardv1.Microbatch{
						Step: 1, Slot: 1, Sequences: 1, Length: 4, Ids: []uint32{1, 2, 3, 4},
						Targets: []int32{2, 3, 4, -1},
					},
				},
			},
			&shardv1.TrainRequest{
				Frame: &shardv1.TrainRequest_Apply{Apply: &shardv1.Apply{Step: 1, LearningRate: 0.1, GradientScale: 1}},
			},
			&shardv1.TrainRequest{
				Frame: &shardv1.TrainRequest_State{State: &shardv1.State{Name: "model.norm.weight", Kind: 1,
					Tensor: tensor}},
			},
			&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Save{Save: &shardv1.Save{Step: 1}}},
			&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Load{Load: &shardv1.Load{Step: 1, ManifestSha256: id}}},
		},
		"/lamina.shard.v1.ShardService/SaveState": {&shardv1.SaveStateRequest{Chain: id, Step: 1}},
		"/lamina.shard.v1.ShardService/Exchange": {
			&shardv1.ExchangeRequest{Frame: &shardv1.ExchangeRequest_Open{Open: &shardv1.ExchangeOpen{Chain: id}}},
			&shardv1.ExchangeRequest{
				Frame: &shardv1.ExchangeRequest_Activation{Activation: &shardv1.Activation{Step: 1, Tensor: tensor}},
			},
		},
		"/lamina.shard.v1.ShardService/Reduce": {
			&shardv1.ReduceRequest{Frame: &shardv1.ReduceRequest_Open{Open: &shardv1.ReduceOpen{Chain: id, From: id}}},
			&shardv1.ReduceRequest{Frame: &shardv1.ReduceRequest_Gradient{Gradient: &eventv1.Gradient{Run: "run",
				Step: 1, Part: "0-1.0", SlotHi: 1, Chunks: 1, Data: []byte{1, 2, 3, 4}}}},
		},
		"/lamina.sampler.v1.SamplerService/Sample": {
			&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Open{Open: &samplerv1.SampleOpen{Pipeline: id}}},
			&samplerv1.SampleRequest{Frame: &samplerv1.SampleRequest_Add{Add: &samplerv1.AddSession{
				Session: id, Epoch: 1, Prompt: []uint32{1}, Rules: &samplerv1.Rules{
					Temperature: 1, TopK: 4, TopP: 0.5, LogitBias: map[uint32]float32{3: 1},
				},
			}}},
			&samplerv1.SampleRequest{
				Frame: &samplerv1.SampleRequest_Remove{Remove: &samplerv1.RemoveSession{Session: id}},
			},
		},
		"/lamina.sampler.v1.SamplerService/Push": {
			&samplerv1.PushRequest{Frame: &samplerv1.PushRequest_Open{Open: &samplerv1.PushOpen{Pipeline: id,
				Vocab: 64}}},
			&samplerv1.PushRequest{
				Frame: &samplerv1.PushRequest_Rows{
					Rows: &samplerv1.Rows{Rows: []*samplerv1.Row{{Session: id, Epoch: 1, Logits: tensor,
						Ids: []uint32{1, 2}}}},
				},
			},
		},
		"/lamina.tokenizer.v1.TokenizerService/DecodeStream": {
			&tokenizerv1.DecodeStreamRequest{
				Frame: &tokenizerv1.DecodeStreamRequest_Open{Open: &tokenizerv1.DecodeOpen{Prefix: []uint32{5}}},
			},
			&tokenizerv1.DecodeStreamRequest{
				Frame: &tokenizerv1.DecodeStreamRequest_Push{Push: &tokenizerv1.DecodePush{Ids: []uint32{7, 8}}},
			},
		},
		"/lamina.router.v1.RouterService/Generate": {&routerv1.GenerateRequest{
			Prompt: &routerv1.GenerateRequest_Text{Text: "Once"}, MaxTokens: 2, TopLogprobs: 2, Stop: []string{"x"},
			Sampling: &routerv1.Sampling{TopK: proto.Uint32(4), MinP: proto.Float32(0.1)}, Echo: true,
			PromptLogprobs: true,
		}},
		"/lamina.router.v1.RouterService/Chat": {
			&routerv1.ChatRequest{Messages: []*tokenizerv1.Message{{Role: "user", Content: "hi"}}, MaxTokens: 2},
		},
		"/lamina.trainer.v1.TrainerService/StartRun": {
			&trainerv1.StartRunRequest{ManifestJson: []byte(`{"name":"x","steps":1}`), Stages: 1},
		},
	}
}

// TestServices_MalformedMessagesTouchNobody sends damaged conversations to every service. No service
// may crash, hang or answer INTERNAL, and the mesh must generate the same text afterwards.
func TestServices_MalformedMessagesTouchNobody(t *testing.T) {
	set := cpu.New(2)
	defer set.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	path := shared(t, "models/stories260K/stories260K-f32.gguf")
	m, err := app.Start(
		ctx,
		app.MeshConfig{
			Kernels: app.Kernels{Set: set},
			Model:   path,
			Stages:  2,
			Train:   true,
			Runs:    app.TrainerConfig{Dir: t.TempDir()},

			AdapterDir: t.TempDir(),
		},
	)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	conn, err := m.Router()
	if err != nil {
		t.Fatal(err)
	}
	router := routerv1.NewRouterServiceClient(conn)
	models, err := router.ListModels(ctx, &routerv1.ListModelsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	before := generateText(t, router, "Once upon a time", 40)
	addresses := map[string]string{
		"shard": "mem:shard-0-0", "sampler": "mem:sampler", "tokenizer": "mem:tokenizer", "router": "mem:router",
		"trainer": "mem:trainer",
	}
	conversations := 400
	if testing.Short() {
		conversations = 60
	}
	methods := seeds(models.GetModels()[0].GetDigest())
	for i, method := range slices.Sorted(maps.Keys(methods)) {
		r := rand.New(rand.NewPCG(31, uint64(i))) // every run sends the same
		var service string
		for name := range addresses {
			if len(method) > 8 && method[8:8+len(name)] == name {
				service = name
			}
		}
		conn, err := m.Dial(addresses[service])
		if err != nil {
			t.Fatal(err)
		}
		for range conversations {
			play(ctx, t, r, conn, method, methods[method])
		}
	}
	if after := generateText(t, router, "Once upon a time", 40); after != before {
		t.Errorf("after malformed messages the text is %q, before it was %q", after, before)
	}
}

// play sends a conversation with damaged messages and reads the answers.
func play(ctx context.Context, t *testing.T, r *rand.Rand, conn *grpc.ClientConn, method string, good []proto.Message) {
	t.Helper()
	limit := time.Minute
	if strings.HasPrefix(method, "/lamina.router.") {
		limit = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	victim := r.IntN(len(good))
	for i, frame := range good {
		if i == victim || r.IntN(4) == 0 {
			frame = mutate(r, frame)
		}
		if err != nil || stream.SendMsg(frame) != nil {
			break
		}
	}
	if err == nil {
		_ = stream.CloseSend()
	}
	for err == nil {
		err = stream.RecvMsg(&tokenizerv1.DecodeFlush{}) // unknown fields of any answer are kept aside
	}
	code := status.Code(err)
	if code == codes.DeadlineExceeded && strings.HasPrefix(method, "/lamina.router.") {
		return // damage made a long request of it, which is still a request
	}
	if code == codes.Internal || code == codes.Unknown && err.Error() != "EOF" || code == codes.DeadlineExceeded {
		t.Errorf("%s answers %v", method, err)
	}
}
