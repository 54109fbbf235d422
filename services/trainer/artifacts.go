package trainer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// Limits of artifacts.
const (
	maxArtifacts  = 100_000
	artifactPiece = 256 << 10 // bytes in a message
)

// runFiles lists what a run writes into its folder: files, and folders with all that is in them.
func runFiles() []string {
	return []string{"manifest.json", "metrics.jsonl", "ledger.jsonl", "samples.jsonl", rolloutsFile, referenceFile,
		eventsName, policyFolder, "checkpoints", "model", adapterDir, quarantineDir}
}

// ListArtifacts lists a run's files.
func (s *Service) ListArtifacts(
	_ context.Context, r *trainerv1.ListArtifactsRequest,
) (*trainerv1.ListArtifactsResponse, error) {
	n, err := s.find(r.GetRun())
	if err != nil {
		return nil, err
	}
	out := &trainerv1.ListArtifactsResponse{}
	root, err := os.OpenRoot(n.dir)
	if errors.Is(err, fs.ErrNotExist) { // the run has not written anything yet
		return out, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "list the files of run %s", r.GetRun())
	}
	defer root.Close()
	for _, name := range runFiles() {
		err := fs.WalkDir(root.FS(), name, func(name string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // not written yet, or removed meanwhile
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if len(out.GetArtifacts()) == maxArtifacts {
				return fs.SkipAll
			}
			out.Artifacts = append(out.Artifacts, artifact(name, info))
			return nil
		})
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "list the files of run %s", r.GetRun())
		}
	}
	return out, nil
}

func artifact(name string, info fs.FileInfo) *trainerv1.Artifact {
	return &trainerv1.Artifact{Name: name, Size: uint64(info.Size()), ChangedMs: info.ModTime().UnixMilli()}
}

// FetchArtifact sends a file of a run. A file that is written meanwhile is sent up to the size that it had at
// the beginning.
func (s *Service) FetchArtifact(
	r *trainerv1.FetchArtifactRequest, stream grpc.ServerStreamingServer[trainerv1.FetchArtifactResponse],
) error {
	n, err := s.find(r.GetRun())
	if err != nil {
		return err
	}
	f, info, err := n.openArtifact(r.GetName())
	if err != nil {
		return err
	}
	defer f.Close()
	if r.GetOffset() > uint64(info.Size()) {
		return fault.Field("offset", "%d is beyond the %d bytes of %s", r.GetOffset(), info.Size(), r.GetName())
	}
	resp := &trainerv1.FetchArtifactResponse{Artifact: artifact(r.GetName(), info)}
	rest := io.NewSectionReader(f, int64(r.GetOffset()), info.Size()-int64(r.GetOffset()))
	for first := true; ; first = false {
		piece := make([]byte, artifactPiece) // a message that is sent may still be read
		count, err := io.ReadFull(rest, piece)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return fault.Wrap(fault.Unavailable, err, "read %s of run %s", r.GetName(), r.GetRun())
		}
		if resp.Data = piece[:count]; first || count > 0 {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		if end {
			return nil
		}
		resp = &trainerv1.FetchArtifactResponse{}
	}
}

// openArtifact opens a file of the run. The name stays inside the run's folder, also through symbolic links.
func (r *run) openArtifact(name string) (*os.File, fs.FileInfo, error) {
	unknown := fault.New(fault.NotFound, "find artifact %q of run %s: no such file", name, r.name)
	if !fs.ValidPath(name) || path.Clean(name) != name {
		return nil, nil, fault.Field("name", "%q is not a path within the run's folder", name)
	}
	if first, _, _ := strings.Cut(name, "/"); !slices.Contains(runFiles(), first) { // the folder may hold others' files
		return nil, nil, unknown
	}
	root, err := os.OpenRoot(r.dir)
	if err != nil {
		return nil, nil, unknown
	}
	defer root.Close()
	info, err := root.Stat(name) // before it is opened: a pipe would block
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil, unknown
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, nil, unknown
	}
	return f, info, nil
}
