package shard_test

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/services/shard"
)

// counted is a kernel set that counts the matrices that it packs and the stages that are built on it.
type counted struct {
	kernel.Set[float32]
	packed, stages atomic.Int64
	embed          func() // called before rows of an embedding are looked up, if it is set

	mu   sync.Mutex
	raws map[*byte]int // stages that have a matrix of a file at this address
}

func newCounted(t *testing.T) *counted {
	set := cpu.New(1)
	t.Cleanup(set.Close)
	return &counted{Set: set, raws: map[*byte]int{}}
}

func (c *counted) Pack(m *kernel.Matrix[float32]) {
	if len(m.Raw) > 0 {
		c.mu.Lock()
		c.raws[&m.Raw[0]]++
		c.mu.Unlock()
	}
	if m.Packed != nil {
		return
	}
	if c.Set.Pack(m); m.Packed != nil {
		c.packed.Add(1)
	}
}

func (c *counted) Scope() kernel.Memory[float32] {
	c.stages.Add(1)
	return c.Set.Scope()
}

func (c *counted) Embed(y kernel.Buffer[float32], w *kernel.Matrix[float32], ids []int32) {
	if c.embed != nil {
		c.embed()
	}
	c.Set.Embed(y, w, ids)
}

// storedOpening returns the first frame of the n-th chain of a run that trains an adapter of a base as it is stored.
func storedOpening(t *testing.T, v *pairVector, n byte) *shardv1.TrainOpen {
	o := pairOpening(t, "llama", v.Beta, len(v.Pairs))
	o.Run, o.Chain[0], o.Adapter.StoredBase = "run-"+string('a'+n), n, true
	return o
}

// sums makes a step over pairs and returns its losses and the norms of its gradients.
func (c *conversation) sums(v *pairVector) (out []float64) {
	c.t.Helper()
	c.sendPairs(v, false)
	for range v.Pairs {
		out = append(out, c.next().GetLoss().GetSum())
	}
	norms := c.next().GetFolded().GetNorms()
	if len(norms) == 0 {
		c.t.Fatal("a step without norms")
	}
	for _, n := range norms {
		out = append(out, n.GetSumSquares())
	}
	return out
}

// A chain that opens shares the packed matrices of a base with those that are there already. It has mapped the files on
// its own, so that the others may end before it.
func TestTrain_ChainsShareTheirBase(t *testing.T) {
	v, set := readPairVectors(t)["llama"], newCounted(t)
	r := newTrainRigOn(t, gradbus.NewMemory(busLimit), set)
	first := r.train(storedOpening(t, &v, 0))
	once := set.packed.Load()
	second := r.train(storedOpening(t, &v, 1))
	if n := set.packed.Load(); once == 0 || n != once {
		t.Errorf("%d matrices are packed with two chains, %d with one", n, once)
	}
	for _, n := range set.raws { // no step runs
		if n != 1 {
			t.Errorf("%d chains use the mapping of one of them", n)
		}
	}
	want := first.sums(&v)
	first.end()
	if got := second.sums(&v); !reflect.DeepEqual(got, want) {
		t.Errorf("the second chain has the losses and norms %v, the first one had %v", got, want)
	}
	second.end()
}

// A stage of training shares packed matrices with the layers that the shard serves.
func TestTrain_SharesTheBaseWithServedLayers(t *testing.T) {
	v, set := readPairVectors(t)["llama"], newCounted(t)
	want := newTrainRigOn(t, gradbus.NewMemory(busLimit), set).train(storedOpening(t, &v, 0)).sums(&v)
	alone := set.packed.Load()
	r, open := newTrainRigOn(t, gradbus.NewMemory(busLimit), set), storedOpening(t, &v, 0)
	files, err := model.Open(open.GetInitial().GetPath())
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	all := model.Range{Hi: len(files.Spec.Layers)}
	if err := r.service.Hold("llama", open.GetInitial().GetDigest(), files, all); err != nil {
		t.Fatal(err)
	}
	c := r.train(open)
	if n := set.packed.Load(); alone == 0 || n != 2*alone {
		t.Errorf("%d matrices are packed to train without serving, %d to serve and train", alone, n-alone)
	}
	if got := c.sums(&v); !reflect.DeepEqual(got, want) {
		t.Errorf("beside served layers the losses and norms are %v, without them %v", got, want)
	}
	c.end()
}

// said is a log that closes a channel when a message has been logged.
type said struct {
	what string
	once sync.Once
	done chan struct{}
}

func (s *said) Write(line []byte) (int, error) {
	if strings.Contains(string(line), s.what) {
		s.once.Do(func() { close(s.done) })
	}
	return len(line), nil
}

// A chain that is opened again builds no stage while the old stage still computes.
func TestTrain_WaitsForAStageThatWasGivenUp(t *testing.T) {
	v, set := readPairVectors(t)["llama"], newCounted(t)
	begun, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	set.embed = func() {
		once.Do(func() {
			close(begun)
			<-release
		})
	}
	waits := &said{what: "wait for a train stage", done: make(chan struct{})}
	r := newRigOf(t, shard.Config{Kernels: set, Bus: gradbus.NewMemory(busLimit),
		Log: slog.New(slog.NewTextHandler(waits, nil))})
	leased := func(epoch uint64) *shardv1.TrainOpen {
		o := storedOpening(t, &v, byte(epoch))
		o.Lease, o.Epoch = "lease", epoch
		return o
	}
	old := r.train(leased(1))
	old.sendPairs(&v, false)
	<-begun
	before := set.stages.Load()
	stream, err := r.client.Train(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &conversation{r, stream}
	c.send(&shardv1.TrainRequest{Frame: &shardv1.TrainRequest_Open{Open: leased(2)}})
	opened := make(chan error, 1)
	go func() {
		f, err := stream.Recv()
		if err == nil && f.GetOpened() == nil {
			err = fmt.Errorf("the first reply is %v", f)
		}
		opened <- err
	}()
	select {
	case <-waits.done:
	case err := <-opened:
		close(release)
		t.Fatalf("a stage is opened while the one before still computes: %v", err)
	}
	if n := set.stages.Load(); n != before {
		t.Errorf("%d memories are in use while the old stage computes, before there were %d", n, before)
	}
	close(release)
	if err := old.fails(); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("the old stage ended with %v", err)
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	if n := set.stages.Load(); n == before {
		t.Error("the new stage has no memory")
	}
	c.end()
}
