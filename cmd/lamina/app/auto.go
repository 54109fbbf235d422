package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/plan"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/services/router"
	"github.com/lamina-mesh/lamina/services/shard"
)

// AutoShard is a shard that takes its layers from the placer.
type AutoShard struct {
	// ModelDir is a folder of models: GGUF files, the first parts of split ones, and model folders. In a mesh it
	// may be empty for the model of the mesh.
	ModelDir string
	// Store is the folder of the store of models; empty for none. Without ModelDir its models are offered. What is
	// fetched goes there; StoreLimit bounds it, and 0 means no limit.
	Store      string
	StoreLimit int64
	// Fetch takes models that other shards have: the layers that are assigned come from them into the store.
	Fetch bool
	// Sources are outside the mesh. Their models can be assigned although no shard has them; Fetch must be set.
	Sources []OutsideSource
	// Memory is the number of bytes for weights and KV caches; 0 means what this machine has available.
	Memory int64
	Zone   string
	// Kernels compute; an empty Set means that of the mesh.
	Kernels Kernels
}

// Placing says how a router places layers on such shards.
type Placing struct {
	Off      bool // never be the placer
	Goal     plan.Goal
	Replicas int
	Keeper   plan.KeeperConfig
	// KVLeast and KVMost are the positions of the KV caches; 0 for the defaults of pkg/plan.
	KVLeast, KVMost int
	// As in router.Placement.
	Silent, Settle, Correct time.Duration
	OnlyDeployed            bool          // as in router.Placement
	Deploy                  deploy.Config // the times of deployments
}

// placement returns the settings of the router, or nil if it does not place layers.
func (c Placing) placement(p *process) *router.Placement {
	registry, ok := p.registry.(router.PlacementRegistry)
	if c.Off || !ok {
		return nil
	}
	return &router.Placement{
		Registry: registry, Holder: newID("router"), Goal: c.Goal, Replicas: c.Replicas, Keeper: c.Keeper,
		KVLeast: c.KVLeast, KVMost: c.KVMost, Silent: c.Silent, Settle: c.Settle,
		Correct:      c.Correct,
		OnlyDeployed: c.OnlyDeployed, Deploy: c.Deploy,
	}
}

// offerModels opens the models of a folder and offers their layers. A file that is no model is passed over, and so is
// one that this build does not run.
func (p *process) offerModels(s *shard.Service, set shardSetting, f *follower) error {
	if set.auto.ModelDir == "" && (set.model == "" || set.auto.Store != "") {
		return nil // the follower offers those of the store
	}
	if set.auto.ModelDir == "" {
		m, err := p.open(set.model, set.as)
		if err == nil {
			s.Offer(m.name, m.digest, m.files)
			f.server.Share(m.name, m.digest, set.model)
			f.knows(set.model, m.digest)
		}
		return err
	}
	paths, err := modelPaths(set.auto.ModelDir)
	if err != nil {
		return err
	}
	found := 0
	for _, path := range paths {
		m, err := p.open(path, "")
		if err != nil {
			p.log.Info("pass over what is no model", "path", path, "error", err)
			continue
		}
		s.Offer(m.name, m.digest, m.files)
		f.server.Share(m.name, m.digest, path)
		f.knows(path, m.digest)
		found++
	}
	if found == 0 && !set.auto.Fetch {
		return fault.Field("model-dir", "open models of %s: there is none that can be placed", set.auto.ModelDir)
	}
	return nil
}

// modelPaths lists what may be a model in a folder, or the folder itself if it is one.
func modelPaths(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "read folder of models")
	}
	var out []string
	seen := map[string]bool{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.Name() == "config.json" {
			return []string{dir}, nil
		}
		if !e.IsDir() && !strings.EqualFold(filepath.Ext(path), ".gguf") {
			continue
		}
		if name := weights.ModelName(path); !seen[name] { // a split file has several parts
			seen[name] = true
			out = append(out, path)
		}
	}
	return out, nil
}

// fileSize returns the bytes of a file, or 0 if there is none.
func fileSize(path string) int64 {
	stat, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return stat.Size()
}

// addMeasuring adds the part that measures how fast shards are, one after the other, since they share processors.
func (p *process) addMeasuring(shards []*shard.Service, following []*follower) {
	if len(shards) == 0 {
		return
	}
	p.add(runPart("measuring", func(ctx context.Context) error {
		for _, s := range shards {
			if err := s.Measure(ctx); err != nil && ctx.Err() == nil {
				p.log.Warn("measure this host", "error", err)
			}
		}
		var work errgroup.Group
		for _, f := range following {
			work.Go(func() error { return f.run(ctx) })
		}
		err := work.Wait()
		<-ctx.Done()
		return err
	}))
}

// liveMeta is a service whose attributes in the registry change.
type liveMeta interface {
	Changed() <-chan struct{}
	Meta() map[string]string
}

const (
	metaRest  = 100 * time.Millisecond // between two updates
	metaAgain = time.Second            // after one that failed
)

// keepMeta updates the attributes of an instance until ctx ends.
func keepMeta(ctx context.Context, g discovery.Registration, live liveMeta, base, last map[string]string) {
	again := make(chan struct{})
	close(again)
	var closed <-chan struct{} = again
	for {
		changed := live.Changed()
		rest := metaRest
		now := maps.Clone(base)
		maps.Copy(now, live.Meta())
		if !maps.Equal(now, last) {
			if err := g.Update(ctx, now); err == nil {
				last = now
			} else {
				changed, rest = closed, metaAgain
			}
		}
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// MachineMemory returns the bytes of memory that are available to this process, or 0 if that is not known.
func MachineMemory() int64 {
	available := int64(0)
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			var kib int64
			if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
				available = kib << 10
			}
		}
	}
	if text, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		var limit int64
		n, _ := fmt.Sscanf(string(text), "%d", &limit)
		if n == 1 && limit > 0 && (available == 0 || limit < available) {
			available = limit
		}
	}
	return available
}

// errMemory says that a shard needs a limit.
var errMemory = errors.New("find out how much memory there is: name a limit")

// autoMemory returns the memory of a shard that takes assignments: of the device that it is on, or else of the machine.
// parts is how many shards share it.
func autoMemory(a AutoShard, set kernel.Set[float32], parts int) (int64, error) {
	available := MachineMemory
	if device, ok := set.(kernel.Accelerator[float32]); ok {
		available = func() int64 { return device.Device().Limit }
	}
	memory := cmp.Or(a.Memory, available()/int64(max(1, parts)))
	if memory <= 0 {
		return 0, fault.Wrap(fault.FailedPrecondition, errMemory, "start shard")
	}
	return memory, nil
}
