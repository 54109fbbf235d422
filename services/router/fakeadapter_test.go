package router_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/lamina-mesh/lamina/pkg/adapter"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// An adapter changes what the fake model has in its cache: every id of the log is moved by a number that depends
// on the adapter. So a page of another adapter, or of none, shows in the text.

func salted(ids []uint32, digest []byte) []uint32 {
	if len(digest) == 0 {
		return ids
	}
	out := make([]uint32, len(ids))
	for i, id := range ids {
		out[i] = id + 1000*(1+uint32(digest[0])+256*uint32(digest[1]))
	}
	return out
}

// expectWith returns the text of n tokens that must follow a prompt under an adapter.
func expectWith(prompt string, n int, digest []byte) string {
	var log []uint32
	for _, b := range []byte(prompt) {
		log = append(log, uint32(b))
	}
	var text []byte
	for i := range n {
		id := picked(next(salted(log, digest)), i)
		log = append(log, id)
		text = append(text, byte(id))
	}
	return string(text)
}

// heldAdapters describes the adapters. The caller holds mu.
func (s *fakeShard) heldAdapters() []*shardv1.HeldAdapter {
	var out []*shardv1.HeldAdapter
	for digest, name := range s.adapters {
		out = append(out, &shardv1.HeldAdapter{Digest: []byte(digest), Name: name})
	}
	return out
}

// loaded returns how many adapters the shard has.
func (s *fakeShard) loaded() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.adapters)
}

// forgetAdapters is what a new process of the shard would do.
func (s *fakeShard) forgetAdapters() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.adapters)
}

func (s *fakeShard) LoadAdapter(
	stream grpc.BidiStreamingServer[shardv1.LoadAdapterRequest, shardv1.LoadAdapterResponse],
) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	s.mu.Lock()
	refuse, pause := s.refuseLoad, s.pauseLoad
	s.mu.Unlock()
	if pause != nil {
		select {
		case <-pause:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
	if refuse != nil {
		return refuse
	}
	digest := wire.Outline(open.GetModules(), open.GetSaved()).Digest()
	if string(digest[:]) != string(open.GetAdapter()) {
		return fault.New(fault.DataLoss, "another digest")
	}
	wanted := &shardv1.AdapterWanted{}
	for i := range open.GetModules() {
		wanted.Modules = append(wanted.Modules, uint32(i))
	}
	for i := range open.GetSaved() {
		wanted.Saved = append(wanted.Saved, uint32(i))
	}
	frame := &shardv1.LoadAdapterResponse_Wanted{Wanted: wanted}
	if err := stream.Send(&shardv1.LoadAdapterResponse{Frame: frame}); err != nil {
		return err
	}
	for range 2*len(open.GetModules()) + len(open.GetSaved()) {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if req.GetTensor() == nil {
			return fault.Field("frame", "want a tensor")
		}
	}
	s.mu.Lock()
	s.adapters[string(open.GetAdapter())] = open.GetName()
	s.loads++
	s.mu.Unlock()
	return stream.Send(&shardv1.LoadAdapterResponse{
		Frame: &shardv1.LoadAdapterResponse_Loaded{Loaded: &shardv1.AdapterLoaded{}},
	})
}

func (s *fakeShard) UnloadAdapter(
	_ context.Context, r *shardv1.UnloadAdapterRequest,
) (*shardv1.UnloadAdapterResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.adapters, string(r.GetAdapter()))
	return &shardv1.UnloadAdapterResponse{}, nil
}

// withAdapters refuses the entries whose adapters are not loaded, and returns the others with their ids.
func (p *fakePipeline) withAdapters(b *shardv1.Batch, ids []uint32) (*shardv1.Batch, []uint32, error) {
	s := p.shard
	s.mu.Lock()
	kept := &shardv1.Batch{Step: b.GetStep(), ReplayUntil: b.GetReplayUntil()}
	var rest []uint32
	var refused []*shardv1.Entry
	for _, e := range b.GetEntries() {
		own := ids[:e.GetRows()]
		ids = ids[e.GetRows():]
		_, loaded := s.adapters[string(e.GetAdapter())]
		_, known := s.tables[string(e.GetSession())]
		if len(e.GetAdapter()) > 0 && !loaded && !known {
			refused = append(refused, e)
			s.unknownNamed++
			continue
		}
		kept.Entries, rest = append(kept.Entries, e), append(rest, own...)
	}
	s.mu.Unlock()
	for _, e := range refused {
		r := &shardv1.Refused{
			Session: e.GetSession(), Step: b.GetStep(), Code: uint32(codes.NotFound), Lo: s.lo, Message: "adapter",
		}
		if err := p.answer(&shardv1.InferResponse{Frame: &shardv1.InferResponse_Refused{Refused: r}}); err != nil {
			return nil, nil, err
		}
	}
	if len(kept.GetEntries()) == 0 {
		return kept, nil, p.computed(b)
	}
	return kept, rest, nil
}

// adapterFolder writes an adapter that a number distinguishes, and returns its folder and digest.
func adapterFolder(t *testing.T, n int) (dir string, digest []byte) { return adapterOf(t, n, "") }

// adapterOf is adapterFolder for an adapter that says which base it was trained on.
func adapterOf(t *testing.T, n int, base string) (dir string, digest []byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), fmt.Sprint("adapter-", n))
	a := &adapter.Adapter{
		BaseDigest: base,
		Config:     adapter.Config{Base: "fake", Rank: 1, Alpha: 1, Targets: adapter.Pattern{Names: []string{"q_proj"}}},
		Modules: []adapter.Module{{Name: "model.layers.0.self_attn.q_proj", Rank: 1, Scale: 1, In: 2, Out: 1,
			A: []float32{1, float32(n)}, B: []float32{1}}},
	}
	if err := adapter.Write(dir, a); err != nil {
		t.Fatal(err)
	}
	sum := a.Outline().Digest()
	return dir, sum[:]
}

// upload loads an adapter from a folder, whose files change may change on the way.
func upload(
	t *testing.T, c routerv1.RouterServiceClient, name, dir string, change func(*routerv1.LoadAdapterOpen, *[]byte),
) (*routerv1.LoadAdapterResponse, error) {
	t.Helper()
	config, err := os.ReadFile(filepath.Join(dir, adapter.ConfigFile))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, adapter.WeightsFile))
	if err != nil {
		t.Fatal(err)
	}
	open := &routerv1.LoadAdapterOpen{Name: name, Config: config, Size: uint64(len(data))}
	if change != nil {
		change(open, &data)
	}
	return load(t, c, open, data)
}

// load sends the frames of LoadAdapter.
func load(
	t *testing.T, c routerv1.RouterServiceClient, open *routerv1.LoadAdapterOpen, data []byte,
) (*routerv1.LoadAdapterResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := c.LoadAdapter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	frames := []*routerv1.LoadAdapterRequest{{Frame: &routerv1.LoadAdapterRequest_Open{Open: open}}}
	for len(data) > 0 {
		n := min(len(data), 100)
		frames = append(frames, &routerv1.LoadAdapterRequest{Frame: &routerv1.LoadAdapterRequest_Data{Data: data[:n]}})
		data = data[n:]
	}
	for _, f := range frames {
		if stream.Send(f) != nil { // CloseAndRecv gives the reason
			break
		}
	}
	return stream.CloseAndRecv()
}

// tensorsOf returns a safetensors file with the values of an adapter's tensors.
func tensorsOf(t *testing.T, tensors map[string][]float32, shapes map[string][]int) []byte {
	t.Helper()
	header, data := map[string]any{}, []byte(nil)
	for name, values := range tensors {
		from := len(data)
		for _, v := range values {
			bits := math.Float32bits(v)
			data = append(data, byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24))
		}
		header[name] = map[string]any{"dtype": "F32", "shape": shapes[name], "data_offsets": []int{from, len(data)}}
	}
	text, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	out := make([]byte, 8, 8+len(text)+len(data))
	for i := range 8 {
		out[i] = byte(len(text) >> (8 * i))
	}
	return append(append(out, text...), data...)
}
