package swarm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// relayWait is how long a shard that is asked for a chunk from outside waits for another process of its host.
const relayWait = 2 * time.Second

// Outside is a source outside the mesh whose manifest has the digests of all chunks, as that of a store has. So what
// comes from it is checked like what comes from peers.
type Outside struct {
	source   pull.Source
	manifest *store.Manifest
	sums     []store.Sums
	files    map[string]pull.File // by path
}

// UnknownError reports a source that does not tell what a model consists of.
type UnknownError struct{ Source string }

// Error names the source.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("open model at %s: it has no manifest with the digests of chunks (%s and %s)", e.Source,
		store.ManifestName, store.SumsName)
}

// FaultCode returns FailedPrecondition.
func (e *UnknownError) FaultCode() fault.Code { return fault.FailedPrecondition }

// NewOutside lists a source. The error is an *UnknownError if its models have to be pulled as a whole.
func NewOutside(ctx context.Context, source pull.Source) (*Outside, error) {
	l, err := source.List(ctx)
	if err != nil {
		return nil, err
	}
	o := &Outside{source: source, files: map[string]pull.File{},
		manifest: &store.Manifest{Format: store.Format, Name: l.Name, Digest: l.Digest}}
	files := slices.Clone(l.Files)
	slices.SortFunc(files, func(a, b pull.File) int { return bytes.Compare([]byte(a.Path), []byte(b.Path)) })
	for _, f := range files {
		if l.Digest == "" || f.SHA256 == nil || f.ChunkSize == 0 || f.Sums == nil {
			return nil, &UnknownError{l.Source}
		}
		o.files[f.Path] = f
		o.sums = append(o.sums, f.Sums)
		o.manifest.Files = append(o.manifest.Files, store.File{Path: f.Path, Size: f.Size, SHA256: *f.SHA256,
			ChunkSize: f.ChunkSize, Chunks: f.Sums.Root()})
	}
	return o, o.manifest.Check()
}

// Name returns the model's name, and Digest its digest.
func (o *Outside) Name() string { return o.manifest.Name }

// Digest returns the model's digest.
func (o *Outside) Digest() string { return o.manifest.Digest }

// read reads a chunk.
func (o *Outside) read(ctx context.Context, f store.File, chunk int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, chunkTime)
	defer cancel()
	from := int64(chunk) * f.ChunkSize
	body, err := o.source.Read(ctx, o.files[f.Path], from, from+f.ChunkLen(chunk))
	if err != nil {
		return nil, err
	}
	data := make([]byte, f.ChunkLen(chunk))
	_, err = io.ReadFull(body, data)
	if err != nil {
		err = fault.Wrap(fault.Unavailable, err, "read %s from outside", f.Path)
	}
	return data, errors.Join(err, body.Close())
}

// OpenOutside opens a model that a source outside the mesh has, and perhaps peers. self is the id of this shard in
// discovery, by which its peers know it.
func OpenOutside(
	ctx context.Context, s *store.Store, log *slog.Logger, self string, o *Outside, peers []Peer,
) (*Remote, error) {
	r := newRemote(log, peers)
	r.self, r.outside, r.model, r.sums = self, o, o.manifest, o.sums
	return r.open(ctx, s)
}

// SetOutside lets a model of peers also come from a source outside the mesh, which has the same files.
func (r *Remote) SetOutside(self string, o *Outside) error {
	if o.manifest.Content() != r.model.Content() {
		return &DisagreementError{Digest: r.model.Digest, Peers: []string{"the source outside", "its peers"}}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.self, r.outside = self, o
	return nil
}

// HasOutside reports whether the model can come from a source outside the mesh.
func (r *Remote) HasOutside() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outside != nil
}

// FromOutside returns the bytes that came from outside.
func (r *Remote) FromOutside() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outer
}

// rank orders shards for a chunk, the same way on all of them.
func rank(id, path string, chunk int) uint64 {
	return xxh3.HashString(fmt.Sprintf("%s\n%s\n%d", id, path, chunk))
}

// provider is where a chunk may come from.
type provider struct {
	Peer
	fetch bool // it has to fetch the chunk from outside
	own   bool // this shard reads it from outside
}

// providers returns where a chunk may come from, in the order in which it is tried: peers that have it, of which those
// come first that have failed less, and equal ones share the chunks; then the shards that can fetch it from outside,
// this one among them. All shards of a mesh begin with the same one of these, so that the chunk comes from outside
// once.
func (r *Remote) providers(path string, chunk int) []provider {
	r.mu.Lock()
	defer r.mu.Unlock()
	var have, reach []provider
	for _, p := range r.peers {
		switch {
		case p.has(path, chunk):
			have = append(have, provider{Peer: p})
		case p.Outside:
			reach = append(reach, provider{Peer: p, fetch: true})
		}
	}
	if r.outside != nil {
		reach = append(reach, provider{Peer: Peer{ID: r.self}, own: true})
	}
	for _, list := range [][]provider{have, reach} {
		slices.SortFunc(list, func(a, b provider) int {
			return cmp.Or(cmp.Compare(r.blamed[a.ID], r.blamed[b.ID]),
				cmp.Compare(rank(a.ID, path, chunk), rank(b.ID, path, chunk)))
		})
	}
	return append(have, reach...)
}

// turn is one goroutine's turn to read a chunk from outside.
type turn struct {
	done chan struct{}
	err  error // read after done
}

// readOutside brings a chunk from outside, unless another goroutine does. Its file must be held.
func (r *Remote) readOutside(ctx context.Context, i, chunk int) error {
	key := [2]int{i, chunk}
	for {
		r.mu.Lock()
		t, busy := r.turns[key]
		if !busy {
			t = &turn{done: make(chan struct{})}
			r.turns[key] = t
		}
		o := r.outside
		r.mu.Unlock()
		if busy {
			select {
			case <-t.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if t.err == nil {
				return nil
			}
			if ctx.Err() != nil || fault.CodeOf(t.err) != fault.Canceled { // another goroutine may have given up early
				return t.err
			}
			continue
		}
		t.err = r.takeOutside(ctx, o, i, chunk)
		r.mu.Lock()
		delete(r.turns, key)
		r.mu.Unlock()
		close(t.done)
		return t.err
	}
}

func (r *Remote) takeOutside(ctx context.Context, o *Outside, i, chunk int) error {
	if r.parts[i].Has(chunk) {
		return nil
	}
	data, err := o.read(ctx, r.model.Files[i], chunk)
	if err == nil {
		_, err = r.parts[i].WriteChunk(chunk, data)
	}
	if err == nil {
		r.mu.Lock()
		r.outer += int64(len(data))
		r.mu.Unlock()
	}
	return err
}

// give sees to it that a chunk is there for a peer. fetch brings it from outside if it is missing.
func (r *Remote) give(ctx context.Context, i, chunk int, fetch bool) error {
	f := r.model.Files[i]
	switch {
	case r.parts[i].Has(chunk):
		return nil
	case !fetch || !r.HasOutside():
		return fault.New(fault.NotFound, "fetch chunk %d of %s of model %s: this shard does not have it", chunk, f.Path,
			r.model.Name)
	}
	waiting, cancel := context.WithTimeout(ctx, relayWait)
	err := r.hold(waiting, i)
	cancel()
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "fetch chunk %d of %s of model %s: another process fetches the file",
			chunk, f.Path, r.model.Name)
	}
	err = r.readOutside(ctx, i, chunk)
	return errors.Join(err, r.rest(i))
}

// holder counts who fetches chunks of a file in this process.
type holder struct {
	turn  chan struct{} // of those who change users
	users int
}

// hold keeps other processes from fetching a file, until rest. It may be called several times.
func (r *Remote) hold(ctx context.Context, i int) error {
	h := &r.holders[i]
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if h.users == 0 {
		if err := r.parts[i].Resume(ctx); err != nil {
			return err
		}
	}
	h.users++
	return nil
}

// rest ends a call of hold.
func (r *Remote) rest(i int) error {
	h := &r.holders[i]
	h.turn <- struct{}{}
	defer func() { <-h.turn }()
	if h.users--; h.users > 0 {
		return nil
	}
	return r.parts[i].Suspend()
}

// Chunks returns the chunks of each file that are there, by the path of the file: a bit for each, the lowest bit of a
// byte first.
func (r *Remote) Chunks() map[string][]byte {
	out := map[string][]byte{}
	for i, f := range r.model.Files {
		bits := make([]byte, (f.NumChunks()+7)/8)
		for c := range f.NumChunks() {
			if r.parts[i].Has(c) {
				bits[c/8] |= 1 << (c % 8)
			}
		}
		out[f.Path] = bits
	}
	return out
}
