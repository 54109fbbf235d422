package app

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	weightsv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/weights/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/store"
	"github.com/lamina-mesh/lamina/pkg/swarm"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/services/shard"
)

const (
	followEvery = 2 * time.Second  // between two looks at files and peers
	followAgain = 30 * time.Second // until a model that could not be opened is tried again
	listTime    = 3 * time.Second  // for the models of a peer
	maxFollowed = 64               // models that are taken from peers

	maxModelName = 256 // bytes of the name of a peer's model
)

// follower offers models to the placer on behalf of a shard: those that come into its folder or its store while it
// runs, and those that other shards have, whose layers it fetches when they are assigned. Run alone uses it.
type follower struct {
	p      *process
	id     string // of the shard in discovery
	s      *shard.Service
	server *swarm.Server
	auto   AutoShard
	store  *store.Store // nil for none
	wanted *wanted      // those of the store to offer; nil for all

	paths   map[string]bool          // of models in the folder that were opened, or are none
	sizes   map[string]int64         // of files of the folder at the last look
	offered map[string]bool          // digests
	remotes map[string]*swarm.Remote // models of peers by digest
	failed  map[string]time.Time     // digests and names that could not be opened
	outside []*sourcing
	names   names                        // that are offered here
	opened  []interface{ Close() error } // files and leases, in the order of opening

	mu      sync.Mutex
	members []discovery.Instance // shards
}

// newFollower returns the follower of a shard. Its close is called after the shard's.
func (p *process) newFollower(
	id string, s *shard.Service, server *swarm.Server, set shardSetting,
) (*follower, error) {
	auto := *set.auto
	dir, limit := auto.Store, auto.StoreLimit
	if set.wanted != nil {
		dir, limit = p.set.store.Dir, p.set.store.Limit
	}
	f := &follower{p: p, id: id, s: s, server: server, auto: auto, wanted: set.wanted, paths: map[string]bool{},
		sizes: map[string]int64{}, offered: map[string]bool{}, remotes: map[string]*swarm.Remote{},
		failed: map[string]time.Time{}}
	for _, source := range auto.Sources {
		f.outside = append(f.outside, &sourcing{OutsideSource: source})
	}
	if dir != "" {
		var err error
		if f.store, err = store.Open(dir, store.Options{Limit: limit}); err != nil {
			return nil, err
		}
		f.opened = append(f.opened, f.store)
	}
	return f, nil
}

func (f *follower) close() error {
	var errs []error
	for _, c := range slices.Backward(f.opened) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// knows tells the follower of a model that was offered when the process was built.
func (f *follower) knows(path, digest string) {
	f.paths[path], f.offered[digest] = true, true
}

// run looks for models until ctx ends.
func (f *follower) run(ctx context.Context) error {
	peers, err := f.p.registry.Watch(ctx, "shard")
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	defer work.Wait()
	seen := make(chan struct{}, 1)
	work.Go(func() { // ends with ctx
		for now := range peers {
			f.mu.Lock()
			f.members = now
			f.mu.Unlock()
			select {
			case seen <- struct{}{}:
			default:
			}
		}
	})
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		f.look(ctx, &work)
		select {
		case <-seen:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// others returns the other shards.
func (f *follower) others() []discovery.Instance {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.members), func(m discovery.Instance) bool { return m.ID == f.id })
}

// look looks once. It starts pulls, which end with ctx.
func (f *follower) look(ctx context.Context, pulls *sync.WaitGroup) {
	before := len(f.offered)
	f.folder()
	f.stored(ctx)
	if f.auto.Fetch {
		f.peers(ctx)
		f.sources(ctx, pulls)
	}
	if len(f.offered) == before {
		return
	}
	if err := f.s.Measure(ctx); err != nil && ctx.Err() == nil {
		f.p.log.Warn("measure this host", "error", err)
	}
}

// folder offers models that have come into the folder of models. A file that still grows is left for the next look.
func (f *follower) folder() {
	if f.auto.ModelDir == "" {
		return
	}
	paths, err := modelPaths(f.auto.ModelDir)
	if err != nil {
		return
	}
	for _, path := range paths {
		if f.paths[path] {
			continue
		}
		size := int64(0)
		files, err := weights.Files(path)
		for _, file := range files {
			size += fileSize(file)
		}
		if before, seen := f.sizes[path]; err != nil || !seen || before != size {
			f.sizes[path] = size
			continue
		}
		f.paths[path] = true
		opened, name, digest, err := openModel(path, "")
		if err != nil {
			f.p.log.Info("pass over what is no model", "path", path, "error", err)
			continue
		}
		f.take(path, name, digest, opened, opened)
	}
}

// take offers a whole model. Its files are closed at the end.
func (f *follower) take(path, name, digest string, files *model.Files, opened ...interface{ Close() error }) {
	f.opened = append(f.opened, opened...)
	if f.offered[digest] {
		return
	}
	f.offered[digest] = true
	f.names.add(name)
	f.s.Offer(name, digest, files)
	f.server.Share(name, digest, path)
	f.p.log.Info("offer a model", "model", name, "digest", digest, "path", path)
}

// stored offers models that have come into the store.
func (f *follower) stored(ctx context.Context) {
	if f.store == nil || f.auto.ModelDir != "" {
		return
	}
	models, err := f.store.Models()
	if err != nil {
		f.p.log.Warn("read the store of models", "error", err)
	}
	for _, m := range models {
		if f.offered[m.Digest] || f.resting(m.Digest) || f.wanted != nil && !f.wanted.has(m.Name, m.Digest) {
			continue
		}
		lease, err := f.store.Acquire(ctx, m.Name)
		if err != nil {
			continue // it has been removed
		}
		files, err := model.Open(lease.Path)
		if err != nil {
			f.rest(m.Digest, m.Name, errors.Join(err, lease.Close()))
			continue
		}
		f.take(lease.Path, m.Name, lease.Digest, files, lease, files)
	}
}

// resting reports whether something could not be opened a while ago.
func (f *follower) resting(digest string) bool {
	at, ok := f.failed[digest]
	return ok && time.Since(at) < followAgain
}

func (f *follower) rest(digest, name string, err error) {
	f.failed[digest] = time.Now()
	f.p.log.Warn("open a model", "model", name, "digest", digest, "error", err)
}

// listed asks the other shards which models they have. It calls each with those of each shard.
func (f *follower) listed(ctx context.Context, each func(swarm.Peer, *weightsv1.Model)) {
	f.p.listModels(ctx, f.others(), each)
}

// peers offers models that other shards have.
func (f *follower) peers(ctx context.Context) {
	have := map[string][]swarm.Peer{} // by digest
	names := map[string]string{}
	f.listed(ctx, func(p swarm.Peer, e *weightsv1.Model) {
		have[e.GetDigest()] = append(have[e.GetDigest()], p)
		names[e.GetDigest()] = e.GetName()
	})
	for _, digest := range slices.Sorted(maps.Keys(have)) {
		if r := f.remotes[digest]; r != nil {
			r.SetPeers(have[digest])
			continue
		}
		// Those that have it in part, and no way to the rest, have it from somebody who has gone.
		whole := slices.ContainsFunc(have[digest], func(p swarm.Peer) bool { return !p.Partial || p.Outside })
		if !whole || f.offered[digest] || f.resting(digest) || len(f.remotes) >= maxFollowed {
			continue
		}
		if err := f.remote(ctx, digest, names[digest], have[digest]); err != nil && ctx.Err() == nil {
			f.rest(digest, names[digest], err)
		}
	}
}

// remote opens a model of peers and offers it.
func (f *follower) remote(ctx context.Context, digest, name string, peers []swarm.Peer) error {
	if name == "" || len(name) > maxModelName {
		return fault.New(fault.DataLoss, "read the models of shard %s: want names of 1 to %d bytes, got %d", peers[0].ID,
			maxModelName, len(name))
	}
	r, err := swarm.Open(ctx, f.store, f.p.log, digest, peers)
	if err != nil {
		return err
	}
	return f.offerRemote(r, name, digest)
}

// offerRemote offers a model that is there in part, and gives its parts to others.
func (f *follower) offerRemote(r *swarm.Remote, name, digest string) error {
	files, err := model.Open(r.Path())
	if err != nil {
		return errors.Join(err, r.Close())
	}
	source, _ := files.Source.(weights.Placed)
	err = f.s.OfferPart(shard.Part{Name: name, Digest: digest, Files: files, Has: r.Has,
		Fetch: func(ctx context.Context, tensors []string, progress func(done, total int64)) error {
			// All shards that fetch at the same time have to know of each other, so that what they share comes once.
			var peers []swarm.Peer
			f.listed(ctx, func(p swarm.Peer, e *weightsv1.Model) {
				if e.GetDigest() == digest {
					peers = append(peers, p)
				}
			})
			r.SetPeers(peers)
			before, outside := r.Fetched(), r.FromOutside()
			err := r.FetchTensors(ctx, source, tensors, progress)
			f.p.log.Info("fetch layers", "model", name, "tensors", len(tensors),
				"bytes_from_shards", r.Fetched()-before, "bytes_from_outside", r.FromOutside()-outside,
				"failures", r.Blamed())
			return err
		}})
	if err == nil {
		err = f.server.ShareParts(name, r)
	}
	if err != nil {
		return errors.Join(err, files.Close(), r.Close())
	}
	f.opened = append(f.opened, r, files)
	f.remotes[digest], f.offered[digest] = r, true
	f.names.add(name)
	f.p.log.Info("offer a model of which nothing is here yet", "model", name, "digest", digest, "outside",
		r.HasOutside(), "folder", filepath.Base(r.Path()))
	return nil
}
