package swarm_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/pkg/store"
	"github.com/lamina-mesh/lamina/pkg/swarm"
)

// outsideRig is a model on an HTTP server that counts the bytes of weights that it sends.
type outsideRig struct {
	model  store.Model
	server *httptest.Server
	client *pull.Client
	sent   atomic.Int64
}

func newOutsideRig(t *testing.T) *outsideRig {
	t.Helper()
	r := &outsideRig{model: small(t, fixtures.Path(t, "models/stories260K/stories260K-f32.gguf"))}
	files := http.FileServer(http.Dir(r.model.Path))
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, ".gguf") {
			w = &counter{w, &r.sent}
		}
		files.ServeHTTP(w, req)
	}))
	r.client = pull.NewClient(pull.ClientOptions{})
	t.Cleanup(func() {
		r.client.Close()
		r.server.Close()
	})
	return r
}

func (r *outsideRig) open(t *testing.T) *swarm.Outside {
	t.Helper()
	o, err := swarm.NewOutside(t.Context(), &pull.Web{Client: r.client, URL: r.server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if o.Digest() != r.model.Digest || o.Name() != "m" {
		t.Fatalf("the source has %s, %s", o.Name(), o.Digest())
	}
	return o
}

// hosts opens the model on n shards, of which all reach the source and each other. The first one fetches the headers.
func (r *outsideRig) hosts(t *testing.T, n int) (*memnet.Network, []*swarm.Remote) {
	t.Helper()
	network := memnet.New()
	servers := make([]*swarm.Server, n)
	for i := range n {
		servers[i] = swarm.NewServer()
		start(t, network, peerName(i), servers[i])
	}
	peers := dial(t, network, n)
	var out []*swarm.Remote
	for i := range n {
		var err error
		var remote *swarm.Remote
		if i == 0 {
			remote, err = swarm.OpenOutside(t.Context(), openStore(t), slog.New(slog.DiscardHandler), peerName(i),
				r.open(t), nil)
		} else {
			first := peers[0]
			first.Partial, first.Outside, first.Parts = true, true, out[0].Chunks()
			remote, err = swarm.Open(t.Context(), openStore(t), slog.New(slog.DiscardHandler), r.model.Digest,
				[]swarm.Peer{first})
			if err == nil {
				err = remote.SetOutside(peerName(i), r.open(t))
			}
		}
		if err == nil {
			err = servers[i].ShareParts("m", remote)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = remote.Close() })
		out = append(out, remote)
	}
	for i, remote := range out {
		var others []swarm.Peer
		for k, p := range peers {
			if k != i {
				p.Partial, p.Outside, p.Parts = true, true, out[k].Chunks()
				others = append(others, p)
			}
		}
		remote.SetPeers(others)
	}
	return network, out
}

func fetchAll(t *testing.T, r *outsideRig, remotes []*swarm.Remote) {
	t.Helper()
	var work sync.WaitGroup
	for _, remote := range remotes {
		work.Go(func() {
			if err := remote.Fetch(t.Context(), all(remote, r.model), nil); err != nil {
				t.Error(err)
			}
			same(t, remote, r.model)
		})
	}
	work.Wait()
}

// Four hosts that need the whole model at the same time, and of which none has it, fetch each byte once from outside.
func TestRemote_HostsShareWhatComesFromOutside(t *testing.T) {
	r := newOutsideRig(t)
	_, remotes := r.hosts(t, 4)
	fetchAll(t, r, remotes)
	size := int64(0)
	for _, f := range r.model.Files {
		if strings.HasSuffix(f.Path, ".gguf") {
			size += f.Size
		}
	}
	outside := int64(0)
	for i, remote := range remotes {
		outside += remote.FromOutside()
		t.Logf("host %d: %d bytes from outside, %d from the others, failures %v", i, remote.FromOutside(), remote.Fetched(),
			remote.Blamed())
		if remote.FromOutside() == 0 {
			t.Errorf("host %d has fetched nothing from outside", i)
		}
	}
	if sent := r.sent.Load(); sent != size || outside < size {
		t.Errorf("the server has sent %d bytes, want %d; the hosts count %d", sent, size, outside)
	}
}

// A host that others ask for chunks from outside is gone: they fetch these themselves.
func TestRemote_LostRelayIsReplaced(t *testing.T) {
	r := newOutsideRig(t)
	network, remotes := r.hosts(t, 3)
	network.Cut(peerName(0), true)
	defer network.Cut(peerName(0), false)
	fetchAll(t, r, remotes[1:])
	if remotes[1].FromOutside()+remotes[2].FromOutside() == 0 {
		t.Error("nothing came from outside")
	}
}

// A host that cannot reach the source gets what another one has, and has fetched for it.
func TestRemote_PartsComeThroughAnotherHost(t *testing.T) {
	r := newOutsideRig(t)
	_, remotes := r.hosts(t, 1)
	network := memnet.New()
	server := swarm.NewServer()
	if err := server.ShareParts("m", remotes[0]); err != nil {
		t.Fatal(err)
	}
	start(t, network, peerName(0), server)
	peer := dial(t, network, 1)[0]
	peer.Partial, peer.Parts = true, remotes[0].Chunks()
	behind, err := swarm.Open(t.Context(), openStore(t), slog.New(slog.DiscardHandler), r.model.Digest,
		[]swarm.Peer{peer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = behind.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := behind.Fetch(ctx, all(behind, r.model), nil); err == nil {
		t.Error("chunks that nobody has were fetched")
	}
	peer.Outside = true
	behind.SetPeers([]swarm.Peer{peer})
	var done, total int64
	if err := behind.Fetch(t.Context(), all(behind, r.model), func(n int64) { done += n }); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.model.Files {
		total += f.Size
	}
	same(t, behind, r.model)
	if behind.FromOutside() != 0 || remotes[0].FromOutside() == 0 || done != total {
		t.Errorf("%d bytes of %d came, %d and %d from outside", done, total, behind.FromOutside(), remotes[0].FromOutside())
	}
}

func TestNewOutside_SourceWithoutDigestsIsNamed(t *testing.T) {
	path := fixtures.Path(t, "models/stories260K/stories260K-f32.gguf")
	var unknown *swarm.UnknownError
	if _, err := swarm.NewOutside(t.Context(), &pull.Path{Path: path}); !errors.As(err, &unknown) {
		t.Errorf("a file without a manifest: %v", err)
	}
}
