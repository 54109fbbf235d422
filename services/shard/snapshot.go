package shard

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/wire"
)

// snapshot is the state of a stage at one step, while SaveState writes it. It refers to the live tensors.
// The goroutine of Train calls detach before it changes one of them; the goroutine of SaveState reads
// them piece by piece with next. Neither waits for the other longer than for the copy of a tensor.
type snapshot struct {
	step   uint64
	writer int // this stage's place among the replicas that write
	items  []*item

	mu   sync.Mutex
	live map[*float32]*item // by the first element; those that are neither read nor copied
	call context.Context    // of the SaveState that writes it; nil before one has come
	over bool
}

// item is a tensor of a snapshot.
type item struct {
	stateTensor
	read   int       // elements that next has returned
	copied []float32 // the elements after the first `from`, once they are detached
	from   int
}

// divide chooses who writes each of the parameters that all replicas have: by name, the one that has the fewest
// values so far.
func divide(tensors []stateTensor, writers int) map[string]int {
	out, values := map[string]int{}, make([]int, max(1, writers))
	for _, t := range tensors {
		if !t.equal {
			continue
		}
		at, ok := out[t.name]
		if !ok {
			for i, n := range values {
				if n < values[at] {
					at = i
				}
			}
			out[t.name] = at
		}
		values[at] += len(t.data)
	}
	return out
}

// newSnapshot takes a snapshot of what one of several writers writes.
func newSnapshot(step uint64, writer, writers int, tensors []stateTensor) *snapshot {
	owner := divide(tensors, writers)
	s := &snapshot{step: step, writer: writer, live: map[*float32]*item{}}
	for _, t := range tensors {
		if !t.own && (!t.equal || owner[t.name] != writer) {
			continue
		}
		i := &item{stateTensor: t}
		s.items = append(s.items, i)
		if len(t.data) > 0 {
			s.live[&t.data[0]] = i
		}
	}
	return s
}

// take gives the snapshot to a call of SaveState.
func (s *snapshot) take(call context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.call = call
}

// wanted reports whether a call writes the snapshot whose caller waits for it.
func (s *snapshot) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over && s.call != nil && s.call.Err() == nil
}

// next copies the following elements of a tensor to buf, which is a multiple of them. It returns nothing if nobody
// waits for them any more.
func (s *snapshot) next(i *item, buf []float32) []float32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.call.Err() != nil {
		return nil
	}
	n := min(len(buf), len(i.data)-i.read)
	if i.copied != nil {
		copy(buf[:n], i.copied[i.read-i.from:])
	} else {
		i.at.Download(buf[:n], i.data[i.read:i.read+n])
	}
	if i.read += n; i.read == len(i.data) {
		i.copied = nil
		if n > 0 {
			delete(s.live, &i.data[0])
		}
	}
	return buf[:n]
}

// detach copies what is not read yet of a tensor that is about to change.
func (s *snapshot) detach(data kernel.Buffer[float32]) {
	if len(data) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.live[&data[0]]
	if i == nil {
		return
	}
	i.copied, i.from = make([]float32, len(i.data)-i.read), i.read
	i.at.Download(i.copied, i.data[i.read:])
	delete(s.live, &data[0])
}

// end drops the references to tensors. The snapshot is written, or never will be.
func (s *snapshot) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	clear(s.live)
	for _, i := range s.items {
		i.copied = nil
	}
}

// save takes a snapshot for SaveState. It takes the place of one that nobody waits for: the trainer may have given up a
// checkpoint, because another stage or the disk has failed, before this stage was asked for its files or had sent them.
func (r *trainRun) save(s *shardv1.Save) error {
	if s.GetStep() != r.step {
		return fault.Field("save.step", "%d, the state is that of step %d", s.GetStep(), r.step)
	}
	if old := r.snapshot; old != nil {
		if old.wanted() {
			return fault.New(fault.FailedPrecondition, "save step %d: the snapshot of step %d is not written yet",
				r.step, old.step)
		}
		old.end()
	}
	if r.diloco != nil {
		r.diloco.use(nil) // so that every worker's state is its own
	}
	writer, writers := r.members.own, len(r.members.shares)
	if s.Writer != nil {
		writer, writers = int(s.GetWriter()), int(s.GetWriters())
	}
	r.snapshot = newSnapshot(r.step, writer, writers, r.all)
	for {
		select {
		case r.snapshots <- r.snapshot:
			return nil
		case <-r.snapshots: // one that has ended
		}
	}
}

// changes copies the parts of tensors that a snapshot needs, before they change.
func (r *trainRun) changes(tensors ...kernel.Buffer[float32]) {
	if r.snapshot == nil {
		return
	}
	for _, t := range tensors {
		r.snapshot.detach(t)
	}
}

type saveServer = grpc.ServerStreamingServer[shardv1.SaveStateResponse]

// SaveState writes the snapshot of a stage.
func (s *Service) SaveState(q *shardv1.SaveStateRequest, stream saveServer) (err error) {
	s.training.mu.Lock()
	r := s.training.runs[runKey(q.GetChain(), q.GetStage())]
	s.training.mu.Unlock()
	if r == nil {
		return fault.New(fault.NotFound, "save stage %d of chain %x: the stage is not open on this shard", q.GetStage(),
			q.GetChain())
	}
	select {
	case r.writing <- struct{}{}:
		defer func() { <-r.writing }()
	case <-r.ctx.Done():
		return r.endedBefore(q.GetStep())
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	shot, err := r.takeSnapshot(stream.Context(), q.GetStep())
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(r) // it has the memory of the tensors
	defer func() {
		if p := recover(); p != nil { // of a device
			err = s.recovered("save the state of layers "+r.layers(), p)
		}
	}()
	defer shot.end()
	saved := &shardv1.Saved{}
	for _, kind := range shot.kinds() {
		f, err := r.writeFile(shot, kind, stream)
		if err != nil {
			return err
		}
		if f != nil {
			saved.Files = append(saved.Files, f)
		}
	}
	shot.end() // the trainer may send the next save as soon as it has the answer
	return stream.Send(&shardv1.SaveStateResponse{Frame: &shardv1.SaveStateResponse_Saved{Saved: saved}})
}

// takeSnapshot waits for the snapshot of a step for a call of SaveState. One call at a time waits or writes.
func (r *trainRun) takeSnapshot(call context.Context, step uint64) (*snapshot, error) {
	for {
		select {
		case shot := <-r.snapshots:
			switch {
			case shot.step < step: // nobody has come for it, and its trainer goes on
				shot.end()
				continue
			case shot.step > step || call.Err() != nil: // it is that of another call
				select {
				case r.snapshots <- shot:
				default: // there is a newer one
					shot.end()
				}
				return nil, fault.New(fault.Aborted, "save step %d: the snapshot is of step %d", step, shot.step)
			}
			shot.take(call)
			return shot, nil
		case <-r.ctx.Done():
			return nil, r.endedBefore(step)
		case <-call.Done():
			return nil, call.Err()
		}
	}
}

// endedBefore is the error of a call of SaveState whose stage has ended.
func (r *trainRun) endedBefore(step uint64) error {
	return fault.New(fault.Aborted, "save step %d: the stage has ended", step)
}

// kinds lists the kinds of tensors that the snapshot has.
func (s *snapshot) kinds() []shardv1.StateKind {
	var out []shardv1.StateKind
	for _, i := range s.items {
		if !slices.Contains(out, i.kind) {
			out = append(out, i.kind)
		}
	}
	slices.Sort(out)
	return out
}

// fileName is the name of the file of a kind of tensors of this stage.
func (r *trainRun) fileName(kind shardv1.StateKind, writer int) string {
	replica := ""
	if n := writer; n > 0 {
		replica = fmt.Sprintf("-replica-%03d", n)
	}
	return fmt.Sprintf("%s%s-%03d-of-%03d.safetensors", kindName(kind), replica, r.open.GetStage()+1,
		r.open.GetStages())
}

// writeFile writes one file of a snapshot: to the shared folder, whose file it returns, or to the
// stream.
func (r *trainRun) writeFile(s *snapshot, kind shardv1.StateKind, stream saveServer) (*shardv1.SavedFile, error) {
	name := r.fileName(kind, s.writer)
	if r.store == nil {
		err := stream.Send(&shardv1.SaveStateResponse{Frame: &shardv1.SaveStateResponse_File{
			File: &shardv1.StateFile{Name: name}}})
		if err != nil {
			return nil, err
		}
		f, err := r.encode(s, kind, name, streamWriter{stream})
		if err != nil {
			return nil, err
		}
		return nil, stream.Send(&shardv1.SaveStateResponse{Frame: &shardv1.SaveStateResponse_Written{
			Written: savedFile(f)}})
	}
	pending, err := r.store.Create(s.step, name)
	if err != nil {
		return nil, err
	}
	f, err := r.encode(s, kind, name, pending)
	if err != nil {
		return nil, errors.Join(err, pending.Abort())
	}
	if _, _, err := pending.Commit(); err != nil {
		return nil, err
	}
	return savedFile(f), nil
}

// streamWriter sends bytes of a file.
type streamWriter struct{ stream saveServer }

// Write implements io.Writer.
func (w streamWriter) Write(p []byte) (int, error) {
	for piece := range slices.Chunk(p, wire.ChunkSize) {
		if err := w.stream.Send(&shardv1.SaveStateResponse{
			Frame: &shardv1.SaveStateResponse_Data{Data: piece}}); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// encode writes the tensors of one kind. It refuses values that are not finite: a checkpoint with them
// would only hide when they appeared.
func (r *trainRun) encode(s *snapshot, kind shardv1.StateKind, name string,
	w interface{ Write([]byte) (int, error) }) (checkpoint.File, error) {
	var tensors []checkpoint.Tensor
	items := map[string]*item{}
	for _, i := range s.items {
		if i.kind == kind {
			tensors = append(tensors, checkpoint.Tensor{Name: i.name, Shape: i.shape})
			items[i.name] = i
		}
	}
	e, err := checkpoint.NewEncoder(w, s.step, name, kindName(kind), tensors)
	if err != nil {
		return checkpoint.File{}, err
	}
	buf := make([]float32, wire.ChunkSize/4)
	for _, t := range e.Tensors() {
		i := items[t.Name]
		for read := 0; read < len(i.data); {
			if r.ctx.Err() != nil {
				return checkpoint.File{}, r.endedBefore(s.step)
			}
			values := s.next(i, buf)
			if values == nil {
				return checkpoint.File{}, fault.New(fault.Aborted, "save step %d: nobody waits for it any more", s.step)
			}
			if at := notFinite(values); at >= 0 {
				return checkpoint.File{}, fault.New(fault.DataLoss,
					"check state of step %d: element %d of %s of %s is %v", s.step, read+at, kindName(kind), t.Name,
					values[at])
			}
			if _, err := e.Write(wire.Bytes(values)); err != nil {
				return checkpoint.File{}, err
			}
			read += len(values)
		}
	}
	return e.Close()
}

// notFinite returns the index of the first value that is not finite, or -1.
func notFinite(values []float32) int {
	const exponent = 0x7f800000
	return slices.IndexFunc(values, func(v float32) bool { return math.Float32bits(v)&exponent == exponent })
}

// savedFile converts the description of a file.
func savedFile(f checkpoint.File) *shardv1.SavedFile {
	raw := func(digest string) []byte {
		out, _ := hex.DecodeString(digest) // of an encoder
		return out
	}
	out := &shardv1.SavedFile{Name: f.Name, Kind: f.Kind, Bytes: uint64(f.Bytes), Sha256: raw(f.SHA256)}
	for _, t := range f.Tensors {
		saved := &shardv1.SavedTensor{Name: t.Name, Offset: uint64(t.Offset), Sha256: raw(t.SHA256)}
		for _, d := range t.Shape {
			saved.Shape = append(saved.Shape, uint32(d))
		}
		out.Tensors = append(out.Tensors, saved)
	}
	return out
}
