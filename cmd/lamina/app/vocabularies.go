package app

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	weightsv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/weights/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/store"
	"github.com/lamina-mesh/lamina/pkg/swarm"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// vocabularies finds the vocabularies of models that a tokenizer was not started with: in its library, in the store of
// models, and at shards, from which it fetches the headers of their files.
type vocabularies struct {
	p       *process
	library func(ctx context.Context, ref string) (tokenizer.Model, error) // nil for none
	store   *store.Store

	mu      sync.Mutex
	members []discovery.Instance // shards
}

// vocabularyTime is how long the vocabulary of a model of shards may take to fetch.
const vocabularyTime = 50 * time.Second

// open finds a model by its name or digest.
func (v *vocabularies) open(ctx context.Context, ref string) (tokenizer.Model, error) {
	if v.library != nil {
		if m, err := v.library(ctx, ref); fault.CodeOf(err) != fault.NotFound {
			return m, err
		}
	}
	models, err := v.store.Models()
	if err != nil {
		v.p.log.Warn("read the store of models", "error", err)
	}
	for _, m := range models {
		if m.Digest == ref || m.Name == ref {
			return v.stored(ctx, m.Name)
		}
	}
	if strings.HasPrefix(ref, "sha256:") {
		return v.fetched(ctx, ref)
	}
	return tokenizer.Model{}, fault.New(fault.NotFound, "find model %.80q: it is neither in the library nor in the store", ref)
}

func (v *vocabularies) stored(ctx context.Context, name string) (tokenizer.Model, error) {
	lease, err := v.store.Acquire(ctx, name)
	if err != nil {
		return tokenizer.Model{}, err
	}
	m, err := tokenizer.Load(lease.Path, name, lease.Digest)
	return m, errors.Join(err, lease.Close())
}

// fetched loads the vocabulary of a model that shards have.
func (v *vocabularies) fetched(ctx context.Context, digest string) (tokenizer.Model, error) {
	ctx, cancel := context.WithTimeout(ctx, vocabularyTime)
	defer cancel()
	v.mu.Lock()
	members := v.members
	v.mu.Unlock()
	name := ""
	var peers []swarm.Peer
	v.p.listModels(ctx, members, func(peer swarm.Peer, e *weightsv1.Model) {
		if e.GetDigest() == digest {
			peers, name = append(peers, peer), e.GetName()
		}
	})
	if len(peers) == 0 || name == "" || len(name) > maxModelName {
		return tokenizer.Model{}, fault.New(fault.NotFound, "find model %.80q: no shard has its files", digest)
	}
	r, err := swarm.Open(ctx, v.store, v.p.log, digest, peers)
	if err != nil {
		return tokenizer.Model{}, err
	}
	m, err := tokenizer.Load(r.Path(), name, digest)
	return m, errors.Join(err, r.Close())
}

// run follows the shards until ctx ends.
func (v *vocabularies) run(ctx context.Context) error {
	shards, err := v.p.registry.Watch(ctx, "shard")
	if err != nil {
		return err
	}
	for now := range shards {
		v.mu.Lock()
		v.members = now
		v.mu.Unlock()
	}
	return nil
}

// listModels asks shards which models they have. It calls each with those of each shard.
func (p *process) listModels(
	ctx context.Context, shards []discovery.Instance, each func(swarm.Peer, *weightsv1.Model),
) {
	for _, m := range shards {
		conn, err := p.dialer.Dial(m.Addr)
		if err != nil {
			continue
		}
		client := weightsv1.NewWeightsServiceClient(conn)
		limited, cancel := context.WithTimeout(ctx, listTime)
		resp, err := client.ListModels(limited, &weightsv1.ListModelsRequest{})
		cancel()
		if err != nil {
			p.log.Debug("list the models of a shard", "shard", m.ID, "error", rpc.FromStatus(err))
			continue
		}
		for _, e := range resp.GetModels() {
			each(peerOf(m.ID, client, e), e)
		}
	}
}

// peerOf returns a shard as a source of a model that it lists.
func peerOf(id string, client weightsv1.WeightsServiceClient, e *weightsv1.Model) swarm.Peer {
	out := swarm.Peer{ID: id, Client: client, Partial: e.GetPartial(), Outside: e.GetOutside()}
	if out.Partial {
		out.Parts = map[string][]byte{}
		for _, part := range e.GetParts() {
			out.Parts[part.GetPath()] = part.GetChunks()
		}
	}
	return out
}
