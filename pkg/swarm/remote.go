package swarm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	weightsv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/weights/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// Limits of a fetch.
const (
	workers   = 8                // chunks that are fetched at the same time
	chunkTime = 30 * time.Second // for one chunk from one peer
	rounds    = 4                // over all peers, until a chunk is given up
	roundRest = 500 * time.Millisecond
)

// Peer is a shard that has a model.
type Peer struct {
	ID     string // of the instance in discovery
	Client weightsv1.WeightsServiceClient
	// Partial says that it does not have the model whole. Parts are the chunks that it has, as Remote.Chunks returns
	// them, and Outside says that it can fetch others from outside the mesh.
	Partial bool
	Parts   map[string][]byte
	Outside bool
}

// has reports whether a peer has a chunk, as far as is known.
func (p *Peer) has(path string, chunk int) bool {
	bits := p.Parts[path]
	return !p.Partial || chunk/8 < len(bits) && bits[chunk/8]>>(chunk%8)&1 == 1
}

// Remote is a model that peers have, or a source outside the mesh.
type Remote struct {
	log     *slog.Logger
	model   *store.Manifest
	sums    []store.Sums     // of each file of the manifest
	parts   []*store.Partial // the same
	holders []holder         // the same
	lease   *store.Lease

	fetching sync.Mutex // one Fetch at a time

	mu      sync.Mutex
	peers   []Peer
	self    string           // this shard's id
	outside *Outside         // nil for none
	turns   map[[2]int]*turn // of chunks that are read from outside
	blamed  map[string]int   // failures of peers
	fetched int64            // bytes from peers
	outer   int64            // bytes from outside
}

// DisagreementError reports peers that do not have the same files under one digest.
type DisagreementError struct {
	Digest string
	Peers  []string // two that differ
}

// Error names the peers.
func (e *DisagreementError) Error() string {
	return fmt.Sprintf(
		"open model %s: the shards %s do not have the same files: pull it again on one of them",
		e.Digest,
		strings.Join(e.Peers, " and "),
	)
}

// FaultCode returns FailedPrecondition.
func (e *DisagreementError) FaultCode() fault.Code { return fault.FailedPrecondition }

// Open opens a model that peers have, with nothing in it but the headers of its files. Close ends its use.
func Open(ctx context.Context, s *store.Store, log *slog.Logger, digest string, peers []Peer) (*Remote, error) {
	if len(peers) == 0 {
		return nil, fault.New(fault.NotFound, "open model %s: no shard has its files", digest)
	}
	r := newRemote(log, peers)
	var err error
	if r.sums, err = r.describe(ctx, digest); err != nil {
		return nil, err
	}
	return r.open(ctx, s)
}

func newRemote(log *slog.Logger, peers []Peer) *Remote {
	return &Remote{log: log, peers: slices.Clone(peers), blamed: map[string]int{}, turns: map[[2]int]*turn{}}
}

// open opens the files of the manifest in the store, and fetches their headers.
func (r *Remote) open(ctx context.Context, s *store.Store) (*Remote, error) {
	err := r.begin(ctx, s, r.sums)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if r.lease, err = s.Scaffold(ctx, r.model, r.parts); err == nil {
		err = r.suspend()
	}
	if err == nil {
		err = r.headers(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Path returns the folder of the model. Its files have holes where Fetch has brought nothing.
func (r *Remote) Path() string { return r.lease.Path }

// SetPeers replaces the peers that have the model.
func (r *Remote) SetPeers(peers []Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers = slices.Clone(peers)
}

// Blamed returns how often peers have failed, by their ids.
func (r *Remote) Blamed() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.blamed)
}

// Fetched returns the bytes that came from peers.
func (r *Remote) Fetched() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fetched
}

// Close ends the use of the model. What was fetched stays in the store.
func (r *Remote) Close() error {
	var errs []error
	if r.lease != nil {
		errs = append(errs, r.lease.Close())
	}
	for _, p := range r.parts {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// describe asks all peers what the model consists of. Peers that do not answer do not count.
func (r *Remote) describe(ctx context.Context, digest string) ([]store.Sums, error) {
	var sums []store.Sums
	var first string
	var failed error
	for _, p := range r.peers {
		m, list, err := describe(ctx, p, digest)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, err
		case err != nil:
			r.blame(p.ID, "describe a model", digest, err)
			failed = err
		case r.model == nil:
			r.model, sums, first = m, list, p.ID
		case r.model.Content() != m.Content():
			return nil, &DisagreementError{Digest: digest, Peers: []string{first, p.ID}}
		}
	}
	if r.model == nil {
		return nil, failed
	}
	return sums, nil
}

// maxSums bounds the digests of the chunks of a model.
const maxSums = 256 << 20

// describe reads what one peer says of a model.
func describe(ctx context.Context, p Peer, digest string) (*store.Manifest, []store.Sums, error) {
	stream, err := p.Client.Describe(ctx, &weightsv1.DescribeRequest{Digest: digest})
	if err != nil {
		return nil, nil, rpc.FromStatus(err)
	}
	var m *store.Manifest
	var sums []byte
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, rpc.FromStatus(err)
		}
		if m == nil {
			if m, err = store.ParseManifest(resp.GetManifest()); err != nil {
				return nil, nil, err
			}
		}
		if sums = append(sums, resp.GetSums()...); len(sums) > maxSums {
			return nil, nil, fault.New(
				fault.DataLoss,
				"describe model %s: more than %d bytes of digests",
				digest,
				maxSums,
			)
		}
	}
	if m == nil || m.Digest != digest {
		return nil, nil, fault.New(
			fault.DataLoss,
			"describe model %s: the shard %s speaks of another one",
			digest,
			p.ID,
		)
	}
	list, err := m.ParseSums(sums)
	return m, list, err
}

// begin opens all files in the store, in the order of their keys.
func (r *Remote) begin(ctx context.Context, s *store.Store, sums []store.Sums) error {
	r.parts, r.holders = make([]*store.Partial, len(r.model.Files)), make([]holder, len(r.model.Files))
	for i := range r.holders {
		r.holders[i].turn = make(chan struct{}, 1)
	}
	wants := make([]store.Want, len(r.parts))
	order := make([]int, len(r.parts))
	for i, f := range r.model.Files {
		order[i] = i
		wants[i] = store.Want{Path: f.Path, Size: f.Size, SHA256: &f.SHA256, ChunkSize: f.ChunkSize, Sums: sums[i]}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(s.Key(wants[a]), s.Key(wants[b])) })
	for n, i := range order {
		if n > 0 && s.Key(wants[order[n-1]]) == s.Key(wants[i]) {
			return fault.New(fault.Unimplemented, "open model %s: %s has the content of another file", r.model.Name,
				r.model.Files[i].Path)
		}
		var err error
		if r.parts[i], err = s.Begin(ctx, wants[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *Remote) suspend() error {
	var errs []error
	for _, p := range r.parts {
		errs = append(errs, p.Suspend())
	}
	return errors.Join(errs...)
}

// Range is bytes [From, To) of a file of the model's folder.
type Range struct {
	Path     string // of the file
	From, To int64
}

// Fetch brings the chunks that cover the ranges, as far as they are missing. count is called with the bytes that have
// come, or were there.
func (r *Remote) Fetch(ctx context.Context, ranges []Range, count func(int64)) error {
	r.fetching.Lock()
	defer r.fetching.Unlock()
	wanted, err := r.cover(ranges)
	if err != nil {
		return err
	}
	for i, chunks := range wanted {
		if err := r.fetchFile(ctx, i, slices.Sorted(maps.Keys(chunks)), count); err != nil {
			return err
		}
	}
	return nil
}

// cover returns the chunks of each file that cover the ranges.
func (r *Remote) cover(ranges []Range) ([]map[int]bool, error) {
	wanted := make([]map[int]bool, len(r.parts))
	for _, want := range ranges {
		i, f, err := r.file(want.Path)
		if err != nil {
			return nil, err
		}
		if want.From < 0 || want.To > f.Size || want.From > want.To {
			return nil, fault.New(fault.Internal, "fetch %s: bytes %d-%d of %d", f.Path, want.From, want.To, f.Size)
		}
		if wanted[i] == nil {
			wanted[i] = map[int]bool{}
		}
		for c := want.From / f.ChunkSize; c*f.ChunkSize < want.To; c++ {
			wanted[i][int(c)] = true
		}
	}
	return wanted, nil
}

// file finds a file of the folder.
func (r *Remote) file(path string) (int, store.File, error) {
	rel, err := filepath.Rel(r.lease.Path, path)
	if err == nil {
		rel = filepath.ToSlash(rel)
		for i, f := range r.model.Files {
			if f.Path == rel {
				return i, f, nil
			}
		}
	}
	return 0, store.File{}, fault.New(fault.Internal, "fetch %s: it is no file of model %s", path, r.model.Name)
}

// fetchFile fetches chunks of a file while no other process does.
func (r *Remote) fetchFile(ctx context.Context, i int, chunks []int, count func(int64)) (err error) {
	p := r.parts[i]
	if missing := func(c int) bool { return !p.Has(c) }; slices.ContainsFunc(chunks, missing) {
		if err := r.hold(ctx, i); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.rest(i)) }()
	}
	var mu sync.Mutex // of count
	counted := func(c int) {
		if count != nil {
			mu.Lock()
			defer mu.Unlock()
			count(p.ChunkLen(c))
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, c := range chunks {
		if p.Has(c) {
			counted(c)
			continue
		}
		group.Go(func() error {
			if err := r.fetchChunk(ctx, i, c); err != nil {
				return err
			}
			counted(c)
			return nil
		})
	}
	return group.Wait()
}

// fetchChunk tries one provider after the other, until the chunk has come undamaged.
func (r *Remote) fetchChunk(ctx context.Context, i, chunk int) error {
	f := r.model.Files[i]
	failures := map[string]error{}
	for round := range rounds {
		if round > 0 { // a connection that was lost is made again after a second or so
			timer := time.NewTimer(roundRest << round)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
		}
		for _, p := range r.providers(f.Path, chunk) {
			err := r.fetchFrom(ctx, p, i, chunk)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if fault.CodeOf(err) == fault.Exhausted { // the disk here is full
				return err
			}
			id := p.ID
			if p.own {
				id = "the source outside"
			}
			r.blame(id, "fetch a chunk", fmt.Sprintf("%s %d", f.Path, chunk), err)
			failures[id] = err
		}
	}
	err := fault.New(fault.Unavailable, "fetch chunk %d of %s of model %s: nobody has sent it", chunk, f.Path,
		r.model.Name)
	for _, id := range slices.Sorted(maps.Keys(failures)) {
		err.Msg += fmt.Sprintf("; %s: %v", id, failures[id])
	}
	return err
}

// fetchFrom brings a chunk from a provider.
func (r *Remote) fetchFrom(ctx context.Context, p provider, i, chunk int) error {
	if p.own {
		return r.readOutside(ctx, i, chunk)
	}
	data, err := fetch(ctx, p, r.model.Digest, r.model.Files[i], chunk)
	if err == nil {
		_, err = r.parts[i].WriteChunk(chunk, data)
	}
	if err == nil {
		r.mu.Lock()
		r.fetched += int64(len(data))
		r.mu.Unlock()
	}
	return err
}

// blame counts a failure of a peer.
func (r *Remote) blame(id, what, of string, err error) {
	r.mu.Lock()
	r.blamed[id]++
	r.mu.Unlock()
	r.log.Warn(what+": another one is asked", "shard", id, "of", of, "error", err)
}

// fetch asks a peer for a chunk.
func fetch(ctx context.Context, p provider, digest string, f store.File, chunk int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, chunkTime)
	defer cancel()
	stream, err := p.Client.FetchChunk(ctx, &weightsv1.FetchChunkRequest{Digest: digest, Path: f.Path,
		Chunk: uint32(chunk), Fetch: p.fetch})
	if err != nil {
		return nil, rpc.FromStatus(err)
	}
	data := make([]byte, 0, f.ChunkLen(chunk))
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, rpc.FromStatus(err)
		}
		if len(data)+len(resp.GetData()) > cap(data) {
			return nil, &store.DamageError{File: f.Path, Chunk: chunk, Msg: "it is too long"}
		}
		data = append(data, resp.GetData()...)
	}
}
