package main

import (
	"math"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// maxMemory is the largest memory limit.
const maxMemory = 1 << 50

// parseMemory reads a number of bytes, such as 2000000000, 2GB or 1.5GiB. An empty text means 0.
func parseMemory(field, text string) (int64, error) {
	number, unit := strings.TrimSpace(text), 1.0
	if number == "" {
		return 0, nil
	}
	for _, u := range []struct {
		name  string
		bytes float64
	}{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
		{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
	} {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) || v*unit < 1 || v*unit > maxMemory {
		return 0, fault.Field(field, "want a number of bytes such as 2000000000, 2GB or 1.5GiB, got %q", text)
	}
	return int64(v * unit), nil
}

// autoFlags are the settings of a shard that takes its layers from the placer.
type autoFlags struct {
	MemoryLimit string `help:"Bytes for weights and KV caches, such as 2GB or 1.5GiB, of a shard with --auto. Default: what this machine has available. With --device cuda:N, bytes that the shard may allocate on the GPU, also without --auto; default: what is free there."`
	Zone        string `help:"Where this host is; a model can be limited to a zone."`
}

func (f autoFlags) auto(modelDir string) (app.AutoShard, error) {
	memory, err := parseMemory("memory-limit", f.MemoryLimit)
	return app.AutoShard{ModelDir: modelDir, Memory: memory, Zone: f.Zone}, err
}

// placingFlags say how a router places layers on shards with --auto.
type placingFlags struct {
	Place         bool   `help:"Place layers on shards that were started with --auto, whenever this router holds the lock for it." default:"true" negatable:""`
	PlaceGoal     string `help:"What the plan is best in: latency, throughput or fewest-hosts."                                      default:"latency"`
	OnlyDeployed  bool   `help:"Load only models that were deployed (lamina deploy). Default: models of shards with --auto that belong to no deployment, too."`
	PlaceReplicas int    `help:"Number of pipelines of each model; 0 means 1, but as many as the hosts allow if the goal is throughput." default:"0"`
}

func (f placingFlags) placing() (app.Placing, error) {
	goal, err := plan.ParseGoal(f.PlaceGoal)
	if err != nil {
		return app.Placing{}, fault.Field("place-goal", "want latency, throughput or fewest-hosts, got %q", f.PlaceGoal)
	}
	if f.PlaceReplicas < 0 || f.PlaceReplicas > maxReplicas {
		return app.Placing{}, fault.Field("place-replicas", "want 0 to %d, got %d", maxReplicas, f.PlaceReplicas)
	}
	return app.Placing{Off: !f.Place, Goal: goal, Replicas: f.PlaceReplicas, OnlyDeployed: f.OnlyDeployed}, nil
}

const maxReplicas = 1000
