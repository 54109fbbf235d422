package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	weightsv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/weights/v1"
	"github.com/lamina-mesh/lamina/pkg/pull"
	"github.com/lamina-mesh/lamina/pkg/store"
)

const (
	partBytes = 256 << 10 // of a message with a part of a chunk
	sumsBytes = 1 << 20   // of a message with digests
	maxReads  = 16        // chunks that are read at the same time
)

// Server implements lamina.weights.v1.WeightsService.
type Server struct {
	weightsv1.UnimplementedWeightsServiceServer
	reads chan struct{} // a token for each chunk that is being read

	mu     sync.Mutex
	models map[string]*shared // by digest
}

// shared is a model that is given away.
type shared struct {
	name, digest, path string
	remote             *Remote // of a model that is there in part; nil for one that is whole

	mu       sync.Mutex // held while the files are read for the first time
	manifest *store.Manifest
	text     []byte // of the manifest
	sums     []store.Sums
	at       []string // paths of the files
}

// NewServer returns a server without models.
func NewServer() *Server {
	return &Server{reads: make(chan struct{}, maxReads), models: map[string]*shared{}}
}

// Register registers the service on a server.
func (s *Server) Register(r grpc.ServiceRegistrar) { weightsv1.RegisterWeightsServiceServer(r, s) }

// Share gives a model away, whose file or folder must not change. Its files are read when somebody first asks for it,
// unless its folder has a manifest, as those of a store have.
func (s *Server) Share(name, digest, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.models[digest] == nil {
		s.models[digest] = &shared{name: name, digest: digest, path: path}
	}
}

// ShareParts gives away the chunks of a model that are there. The model must stay open.
func (s *Server) ShareParts(name string, r *Remote) error {
	m := &shared{name: name, digest: r.model.Digest, remote: r, manifest: r.model, sums: r.sums}
	var err error
	if m.text, err = r.model.Encode(); err != nil {
		return err
	}
	for _, f := range r.model.Files {
		m.at = append(m.at, filepath.Join(r.lease.Path, filepath.FromSlash(f.Path)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.models[m.digest] == nil {
		s.models[m.digest] = m
	}
	return nil
}

// ListModels lists the models.
func (s *Server) ListModels(context.Context, *weightsv1.ListModelsRequest) (*weightsv1.ListModelsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &weightsv1.ListModelsResponse{}
	for _, digest := range slices.Sorted(maps.Keys(s.models)) {
		m := s.models[digest]
		e := &weightsv1.Model{Name: m.name, Digest: digest}
		if m.remote != nil {
			chunks := m.remote.Chunks()
			e.Partial, e.Outside = true, m.remote.HasOutside()
			for _, path := range slices.Sorted(maps.Keys(chunks)) {
				e.Parts = append(e.Parts, &weightsv1.Part{Path: path, Chunks: chunks[path]})
			}
		}
		out.Models = append(out.Models, e)
	}
	return out, nil
}

// open returns a model with its manifest.
func (s *Server) open(ctx context.Context, digest string) (*shared, error) {
	s.mu.Lock()
	m := s.models[digest]
	s.mu.Unlock()
	if m == nil {
		return nil, fault.New(fault.NotFound, "find model %.80q: this shard does not have its files", digest)
	}
	return m, m.describe(ctx)
}

// describe reads the manifest of the model's folder, or the files.
func (m *shared) describe(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.manifest != nil {
		return nil
	}
	source := &pull.Path{Path: m.path}
	l, err := source.List(ctx)
	if err != nil {
		return err
	}
	out := &store.Manifest{Format: store.Format, Name: l.Name, Digest: m.digest}
	var sums []store.Sums
	var at []string
	slices.SortFunc(l.Files, func(a, b pull.File) int { return bytes.Compare([]byte(a.Path), []byte(b.Path)) })
	dir := m.path
	if stat, err := os.Stat(dir); err == nil && !stat.IsDir() {
		dir = filepath.Dir(dir)
	}
	for _, f := range l.Files {
		path := filepath.Join(dir, filepath.FromSlash(f.Path))
		file := store.File{Size: f.Size, ChunkSize: f.ChunkSize, Chunks: f.Sums.Root()}
		list := f.Sums
		if f.SHA256 != nil && list != nil {
			file.SHA256 = *f.SHA256
		} else if file, list, err = describeFile(ctx, path, f.Size); err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "read %s", path)
		}
		file.Path = f.Path
		out.Files, sums, at = append(out.Files, file), append(sums, list), append(at, path)
	}
	text, err := out.Encode()
	if err != nil {
		return err
	}
	m.manifest, m.text, m.sums, m.at = out, text, sums, at
	return nil
}

func describeFile(ctx context.Context, path string, size int64) (store.File, store.Sums, error) {
	f, err := os.Open(path)
	if err != nil {
		return store.File{}, nil, err
	}
	defer f.Close()
	return store.Describe(ctx, f, size, store.ChunkSize(size))
}

// Describe sends the manifest of a model and the digests of its chunks.
func (s *Server) Describe(
	r *weightsv1.DescribeRequest,
	stream grpc.ServerStreamingServer[weightsv1.DescribeResponse],
) error {
	m, err := s.open(stream.Context(), r.GetDigest())
	if err != nil {
		return err
	}
	if err := stream.Send(&weightsv1.DescribeResponse{Manifest: m.text}); err != nil {
		return err
	}
	var part []byte
	for _, sums := range m.sums {
		for _, sum := range sums {
			if part = append(part, sum[:]...); len(part) >= sumsBytes {
				if err := stream.Send(&weightsv1.DescribeResponse{Sums: part}); err != nil {
					return err
				}
				part = nil // gRPC may still hold it
			}
		}
	}
	if len(part) > 0 {
		return stream.Send(&weightsv1.DescribeResponse{Sums: part})
	}
	return nil
}

// FetchChunk sends a chunk.
func (s *Server) FetchChunk(
	r *weightsv1.FetchChunkRequest, stream grpc.ServerStreamingServer[weightsv1.FetchChunkResponse],
) error {
	m, err := s.open(stream.Context(), r.GetDigest())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(m.manifest.Files, func(f store.File) bool { return f.Path == r.GetPath() })
	if i < 0 {
		return fault.New(fault.NotFound, "fetch a chunk of %s: it has no file %.80q", m.name, r.GetPath())
	}
	f := m.manifest.Files[i]
	if n := f.NumChunks(); r.GetChunk() >= uint32(n) {
		return fault.Field("chunk", "fetch a chunk of %s: %s has %d chunks, and no chunk %d", m.name, f.Path, n,
			r.GetChunk())
	}
	select {
	case s.reads <- struct{}{}:
		defer func() { <-s.reads }()
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	if m.remote != nil {
		if err := m.remote.give(stream.Context(), i, int(r.GetChunk()), r.GetFetch()); err != nil {
			return err
		}
	}
	data, err := readChunk(m.at[i], f, int(r.GetChunk()), m.sums[i])
	if err != nil {
		return err
	}
	for len(data) > 0 {
		n := min(len(data), partBytes)
		if err := stream.Send(&weightsv1.FetchChunkResponse{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// readChunk reads a chunk and checks it.
func readChunk(path string, f store.File, i int, sums store.Sums) ([]byte, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "read %s", f.Path)
	}
	defer in.Close()
	data := make([]byte, f.ChunkLen(i))
	_, err = in.ReadAt(data, int64(i)*f.ChunkSize)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist):
		return nil, &store.DamageError{File: f.Path, Chunk: i, Msg: "the file ends early"}
	case err != nil:
		return nil, fault.Wrap(fault.Unavailable, err, "read %s", f.Path)
	case store.SumOf(data) != sums[i]:
		return nil, &store.DamageError{File: f.Path, Chunk: i, Msg: "it is damaged here"}
	}
	return data, nil
}
