package swarm_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/fault"
	weightsv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/weights/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/pkg/store"
	"github.com/lamina-mesh/lamina/pkg/swarm"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

const chunk = store.MinChunk

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// small stores a model with small chunks, and returns it.
func small(t testing.TB, path string) store.Model {
	t.Helper()
	s := openStore(t)
	l, err := (&pull.Path{Path: path}).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	draft := store.Draft{Name: "m"}
	dir := path
	if stat, err := os.Stat(path); err == nil && !stat.IsDir() {
		dir = filepath.Dir(path)
	}
	for _, f := range l.Files {
		data, err := os.ReadFile(filepath.Join(dir, f.Path))
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Begin(t.Context(), store.Want{Path: f.Path, Size: f.Size, Origin: f.Path, ChunkSize: chunk})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for i := 0; i*chunk < len(data); i++ {
			if _, err := p.WriteChunk(i, data[i*chunk:min(len(data), (i+1)*chunk)]); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		draft.Files = append(draft.Files, store.DraftFile{Path: f.Path, File: p})
	}
	if _, err := s.Commit(t.Context(), draft); err != nil {
		t.Fatal(err)
	}
	m, err := s.Model("m")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// host is a peer. It counts the chunks that it is asked for, and change may spoil the answers.
type host struct {
	*swarm.Server
	asked  atomic.Int64
	change func(ctx context.Context, data []byte) ([]byte, error)
}

func (h *host) Register(r grpc.ServiceRegistrar) { weightsv1.RegisterWeightsServiceServer(r, h) }

func (h *host) FetchChunk(
	r *weightsv1.FetchChunkRequest, stream grpc.ServerStreamingServer[weightsv1.FetchChunkResponse],
) error {
	h.asked.Add(1)
	if h.change == nil {
		return h.Server.FetchChunk(r, stream)
	}
	return h.Server.FetchChunk(r, &changed{stream, h.change})
}

type changed struct {
	grpc.ServerStreamingServer[weightsv1.FetchChunkResponse]
	change func(context.Context, []byte) ([]byte, error)
}

func (c *changed) Send(r *weightsv1.FetchChunkResponse) error {
	data, err := c.change(c.Context(), bytes.Clone(r.GetData()))
	if err != nil {
		return err
	}
	return c.ServerStreamingServer.Send(&weightsv1.FetchChunkResponse{Data: data})
}

// fleet serves a model on several peers.
func fleet(t testing.TB, m store.Model, n int) (*memnet.Network, []*host, []swarm.Peer) {
	t.Helper()
	network := memnet.New()
	var hosts []*host
	for i := range n {
		h := &host{Server: swarm.NewServer()}
		h.Share("m", m.Digest, m.Path)
		start(t, network, peerName(i), h)
		hosts = append(hosts, h)
	}
	return network, hosts, dial(t, network, n)
}

func peerName(i int) string { return string(rune('a' + i)) }

func start(t testing.TB, network *memnet.Network, name string, h interface {
	Register(grpc.ServiceRegistrar)
}) {
	t.Helper()
	l, err := network.Listen(name)
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerOptions{})
	h.Register(server)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
}

// dial connects to peers anew.
func dial(t testing.TB, network *memnet.Network, n int) []swarm.Peer {
	t.Helper()
	dialer := rpc.NewDialer(rpc.DialOptions{Net: network})
	t.Cleanup(func() { _ = dialer.Close() })
	var peers []swarm.Peer
	for i := range n {
		conn, err := dialer.Dial("mem:" + peerName(i))
		if err != nil {
			t.Fatal(err)
		}
		peers = append(peers, swarm.Peer{ID: peerName(i), Client: weightsv1.NewWeightsServiceClient(conn)})
	}
	return peers
}

func openRemote(t testing.TB, s *store.Store, m store.Model, peers []swarm.Peer) *swarm.Remote {
	t.Helper()
	r, err := swarm.Open(t.Context(), s, slog.New(slog.DiscardHandler), m.Digest, peers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// all returns the ranges of all files.
func all(r *swarm.Remote, m store.Model) []swarm.Range {
	var out []swarm.Range
	for _, f := range m.Files {
		out = append(out, swarm.Range{Path: filepath.Join(r.Path(), filepath.FromSlash(f.Path)), To: f.Size})
	}
	return out
}

// same compares the folders of two models.
func same(t testing.TB, r *swarm.Remote, m store.Model) {
	t.Helper()
	for _, f := range m.Files {
		want, err1 := os.ReadFile(filepath.Join(m.Path, f.Path))
		got, err2 := os.ReadFile(filepath.Join(r.Path(), f.Path))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has other bytes: %v", f.Path, err)
		}
	}
}

// Models of which only the headers and the tensors of a span are there give the tensors of that span.
func TestRemote_FetchesOnlyTheChunksOfItsTensors(t *testing.T) {
	for name, path := range map[string]string{
		"GGUF":         fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"),
		"Hugging Face": fixtures.Path(t, "models/tiny/llama"),
	} {
		t.Run(name, func(t *testing.T) {
			m := small(t, path)
			_, hosts, peers := fleet(t, m, 3)
			r := openRemote(t, openStore(t), m, peers)
			header := r.Fetched()
			whole, err := model.Open(m.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer whole.Close()
			files, err := model.Open(r.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer files.Close()
			span := model.Range{Lo: 1, Hi: 2}
			names, source := files.SpanFiles(span), files.Source.(weights.Placed)
			counted := int64(0)
			if err := r.FetchTensors(t.Context(), source, names, func(done, _ int64) { counted = done }); err != nil {
				t.Fatal(err)
			}
			if counted == 0 {
				t.Error("no progress was reported")
			}
			for _, tensor := range names {
				want, err1 := whole.Source.Data(tensor)
				got, err2 := files.Source.Data(tensor)
				if err := errors.Join(err1, err2); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s has other bytes: %v", tensor, err)
				}
				if place, _ := source.Place(tensor); !r.Has(place) {
					t.Errorf("%s counts as missing", tensor)
				}
			}
			// The last layer was not asked for.
			last := model.Range{Lo: len(files.Spec.Layers) - 1, Hi: len(files.Spec.Layers)}
			if len(files.Spec.Layers) > 2 {
				missing := false
				for _, tensor := range files.Span(last) {
					place, _ := source.Place(tensor)
					missing = missing || !r.Has(place)
				}
				if !missing {
					t.Error("all layers were fetched")
				}
			}
			fetched, bytes := r.Fetched(), files.SpanBytes(span)
			t.Logf(
				"%d bytes of %d: %d of headers, %d for a span of %d",
				fetched,
				m.Size(),
				header,
				fetched-header,
				bytes,
			)
			if name == "GGUF" && fetched >= m.Size() {
				t.Errorf("fetched %d bytes of %d", fetched, m.Size())
			}
			for i, h := range hosts {
				if h.asked.Load() == 0 {
					t.Errorf("peer %d was not asked", i)
				}
			}
			before := r.Fetched()
			if err := r.FetchTensors(t.Context(), source, names, nil); err != nil || r.Fetched() != before {
				t.Errorf("fetched %d bytes again: %v", r.Fetched()-before, err)
			}
		})
	}
}

// One of three peers flips a bit of every chunk. Its chunks come from another one, and it is named.
func TestRemote_LiarIsNamed(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	_, hosts, peers := fleet(t, m, 3)
	hosts[1].change = func(_ context.Context, data []byte) ([]byte, error) {
		data[len(data)/2] ^= 1
		return data, nil
	}
	remote := openRemote(t, openStore(t), m, peers)
	if err := remote.Fetch(t.Context(), all(remote, m), nil); err != nil {
		t.Fatal(err)
	}
	same(t, remote, m)
	if blamed := remote.Blamed(); blamed["b"] == 0 || len(blamed) != 1 {
		t.Errorf("blamed %v, want b alone", blamed)
	}
}

// Each peer flips a bit of every fourth chunk, 1,000 in all.
func TestRemote_FlippedBitsComeFromAnotherPeer(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	_, hosts, peers := fleet(t, m, 3)
	var mu sync.Mutex
	r, flips := rand.New(rand.NewPCG(1, 2)), 0
	for _, h := range hosts {
		h.change = func(_ context.Context, data []byte) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			if r.IntN(4) == 0 {
				flips++
				data[r.IntN(len(data))] ^= 1 << r.IntN(8)
			}
			return data, nil
		}
	}
	want := 1000
	if testing.Short() {
		want = 200
	}
	stores := 0
	for ; flips < want && !t.Failed(); stores++ {
		remote := openRemote(t, openStore(t), m, peers)
		if err := remote.Fetch(t.Context(), all(remote, m), nil); err != nil {
			t.Fatal(err)
		}
		same(t, remote, m)
		_ = remote.Close()
	}
	t.Logf("%d flips in %d stores", flips, stores)
}

func TestRemote_LiarsAloneAreRefusedByName(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	_, hosts, peers := fleet(t, m, 2)
	for _, h := range hosts {
		h.change = func(_ context.Context, data []byte) ([]byte, error) {
			data[0] ^= 1
			return data, nil
		}
	}
	_, err := swarm.Open(t.Context(), openStore(t), slog.New(slog.DiscardHandler), m.Digest, peers)
	if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "; a: ") ||
		!strings.Contains(err.Error(), "; b: ") || !strings.Contains(err.Error(), "of stories260K-f32.gguf of model") {
		t.Errorf("got %v", err)
	}
}

// Peers are killed one after the other in mid-transfer, 50 times in all.
func TestRemote_GoesOnWhenPeersAreKilled(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	network, hosts, _ := fleet(t, m, 3)
	cuts := 0
	for range 50 {
		peers := dial(t, network, len(hosts))
		remote := openRemote(t, openStore(t), m, peers)
		var cut string
		after := atomic.Int64{}
		after.Store(1 + rand.Int64N(150))
		for i, h := range hosts {
			h.change = func(_ context.Context, data []byte) ([]byte, error) {
				if after.Add(-1) == 0 {
					cut = peers[i].ID
					network.Cut(cut, true)
				}
				return data, nil
			}
		}
		if err := remote.Fetch(t.Context(), all(remote, m), nil); err != nil {
			t.Fatal(err)
		}
		same(t, remote, m)
		if t.Failed() {
			return
		}
		for _, h := range hosts {
			h.change = nil
		}
		if cut != "" {
			cuts++
			network.Cut(cut, false)
		}
		_ = remote.Close()
	}
	t.Logf("%d of 50 peers were cut off in mid-transfer", cuts)
	if cuts < 40 {
		t.Errorf("only %d peers were cut off", cuts)
	}
}

// A peer that answers nothing holds up a fetch no longer than the limit of a chunk. The context ends it sooner.
func TestRemote_EndsWithItsContext(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	_, hosts, peers := fleet(t, m, 1)
	remote := openRemote(t, openStore(t), m, peers)
	ctx, cancel := context.WithCancel(t.Context())
	hosts[0].change = func(ctx context.Context, _ []byte) ([]byte, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := remote.Fetch(ctx, all(remote, m), nil); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("got %v", err)
	}
	hosts[0].change = nil
	if err := remote.Fetch(t.Context(), all(remote, m), nil); err != nil {
		t.Fatal(err)
	}
	same(t, remote, m)
}

// Four processes of a host need overlapping parts at the same time. No chunk comes twice.
func TestRemote_ProcessesOfAHostFetchNoChunkTwice(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	_, hosts, peers := fleet(t, m, 2)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 {
		s, err := store.Open(dir, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		wg.Go(func() {
			r, err := swarm.Open(t.Context(), s, slog.New(slog.DiscardHandler), m.Digest, peers)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			for _, want := range all(r, m) {
				want.From = want.To / 8 * int64(i)
				if err := r.Fetch(t.Context(), []swarm.Range{want}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	chunks, asked := int64(0), hosts[0].asked.Load()+hosts[1].asked.Load()
	for _, f := range m.Files {
		chunks += int64(f.NumChunks())
	}
	if asked != chunks {
		t.Errorf("%d chunks were asked for, want %d", asked, chunks)
	}
}

// Four hosts need a model that one server has: one pulls it, and the others take it from those that have it. The server
// sends each byte once.
func TestRemote_FourStoresPullEachByteOnce(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	sent := atomic.Int64{}
	files := http.FileServer(http.Dir(m.Path))
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".gguf") {
			w = &counter{w, &sent}
		}
		files.ServeHTTP(w, r)
	}))
	defer outside.Close()
	client := pull.NewClient(pull.ClientOptions{})
	defer client.Close()
	s := openStore(t)
	if _, err := pull.Pull(t.Context(), s, &pull.Web{Client: client, URL: outside.URL}, pull.Options{}); err != nil {
		t.Fatal(err)
	}
	pulled, err := s.Model("m")
	if err != nil {
		t.Fatal(err)
	}
	_, hosts, peers := fleet(t, pulled, 1)
	for range 3 {
		r := openRemote(t, openStore(t), pulled, peers)
		if err := r.Fetch(t.Context(), all(r, pulled), nil); err != nil {
			t.Fatal(err)
		}
		same(t, r, m)
	}
	file := m.Files[len(m.Files)-1]
	if got := sent.Load(); got != file.Size {
		t.Errorf("the server sent %d bytes, want %d", got, file.Size)
	}
	if got, want := hosts[0].asked.Load(), int64(3*file.NumChunks()); got != want {
		t.Errorf("the first host sent %d chunks, want %d", got, want)
	}
}

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func TestOpen_PeersThatDisagreeAreNamed(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	network, _, _ := fleet(t, m, 1)
	other := small(t, fixtures.Path(t, "models/tiny/llama"))
	h := swarm.NewServer()
	// It claims the digest for other files: its folder has no manifest.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(other.Path)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{store.ManifestName, store.SumsName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.Share("m", m.Digest, dir)
	start(t, network, peerName(1), h)
	peers := dial(t, network, 2)
	var differ *swarm.DisagreementError
	_, err := swarm.Open(t.Context(), openStore(t), slog.New(slog.DiscardHandler), m.Digest, peers)
	if !errors.As(err, &differ) || strings.Join(differ.Peers, "") != "ab" {
		t.Errorf("got %v", err)
	}
	_, err = swarm.Open(t.Context(), openStore(t), slog.New(slog.DiscardHandler), m.Digest, nil)
	if fault.CodeOf(err) != fault.NotFound {
		t.Errorf("opened a model that nobody has: %v", err)
	}
}

func TestServer_RefusesWhatItDoesNotHave(t *testing.T) {
	m := small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))
	_, _, peers := fleet(t, m, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, c := range map[string]struct {
		request *weightsv1.FetchChunkRequest
		code    fault.Code
	}{
		"another model": {&weightsv1.FetchChunkRequest{Digest: "sha256:0"}, fault.NotFound},
		"another file": {&weightsv1.FetchChunkRequest{Digest: m.Digest, Path: "../../etc/passwd"},
			fault.NotFound},
		"beyond the end": {&weightsv1.FetchChunkRequest{Digest: m.Digest, Path: m.Files[0].Path, Chunk: 1 << 31},
			fault.Invalid},
	} {
		stream, err := peers[0].Client.FetchChunk(ctx, c.request)
		if err == nil {
			_, err = stream.Recv()
		}
		if got := fault.CodeOf(rpc.FromStatus(err)); got != c.code {
			t.Errorf("%s: got %v (%v), want %v", name, got, err, c.code)
		}
	}
}
