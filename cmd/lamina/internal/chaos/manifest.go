package chaos

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// maxManifest is the maximum number of bytes of a manifest, and maxFaults of its faults with their
// repetitions.
const (
	maxManifest = 1 << 20
	maxFaults   = 10000
	longest     = 24 * time.Hour
)

// Manifest describes a run.
type Manifest struct {
	Name  string
	Model string // file or folder; empty for the bundled model
	Fleet FleetSpec
	Load  LoadSpec

	Calm     time.Duration // of undisturbed load before the faults
	Duration time.Duration // of the load with faults
	// LeastTokens is how many tokens per second must flow in the calm phase.
	LeastTokens float64
	StallLimit  time.Duration // of the p99 of stalls
	Seed        int64         // of the members that a fault picks
	Faults      []FaultSpec
}

// FleetSpec says which processes run.
type FleetSpec struct {
	Stages, Replicas, Routers, Samplers, Tokenizers int
	KVPositions, Threads                            int
	Args                                            map[string][]string // more arguments, by service
}

// LoadSpec is the load of a run.
type LoadSpec struct {
	Streams   int
	Rate      float64
	MaxTokens int
	Timeout   time.Duration
	Tenants   []loadtest.Tenant
	Prompts   []loadtest.Prompt // empty for a mix of greedy, seeded and JSON schema
}

// Kind is what a fault does.
type Kind string

// The kinds of faults.
const (
	Kill      Kind = "kill"         // SIGKILL
	Restart   Kind = "restart"      // SIGTERM, wait for the exit, start again
	Pause     Kind = "pause"        // SIGSTOP, and SIGCONT after For
	Slow      Kind = "slow"         // run for a part of the time only
	Partition Kind = "partition"    // hold back all bytes to or from the member
	Delay     Kind = "delay"        // deliver bytes to and from the member later
	Reset     Kind = "reset"        // reset all connections to the member, and refuse new ones
	SlowRead  Kind = "slow_readers" // clients of the router that do not read their streams
)

// FaultSpec is a fault of the schedule.
type FaultSpec struct {
	Kind   Kind
	Line   int    // in the manifest
	Target string // name of a member, with * for any text
	// Pick selects among the members that Target matches: "random" picks one each time, "each" takes
	// them one after another, each when the one before is done, "all" takes all at once.
	Pick         string
	At, Every    time.Duration
	Times        int
	For          time.Duration // how long it lasts
	RestartAfter time.Duration // start a killed member again; 0 leaves it dead
	Factor       float64       // how many times slower
	Delay        time.Duration
	Direction    string // of a partition: "in", "out" or "both"
	Count        int    // of slow readers
	Promise      Promise
}

// ParseManifest reads a manifest, which is a JSON object. Errors name the field and the line.
func ParseManifest(text []byte) (*Manifest, error) {
	if len(text) > maxManifest {
		return nil, fault.New(fault.Invalid, "read manifest: want at most %d bytes, got %d", maxManifest, len(text))
	}
	root, err := parseJSON(text)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read manifest")
	}
	o := object{root, &err}
	if root.kind != '{' {
		return nil, fault.New(fault.Invalid, "read manifest: line %d: want an object", root.line)
	}
	m := &Manifest{
		Name: o.text("name", "chaos"), Model: o.text("model", ""),
		Calm:        o.duration("calm", 5*time.Second, 100*time.Millisecond, longest),
		Duration:    o.duration("duration", 30*time.Second, 100*time.Millisecond, longest),
		LeastTokens: o.number("least_tokens_per_second", 100, 0, 1e9),
		StallLimit:  o.duration("stall_limit", time.Second, time.Millisecond, longest),
		Seed:        int64(o.integer("seed", 1, 0, 1<<53)),
	}
	m.Fleet = parseFleet(o.within("fleet"))
	m.Load = parseLoad(o.within("load"), m.Seed)
	total := 0
	for _, item := range o.list("faults") {
		f := m.parseFault(object{item, &err})
		if total += f.Times; total > maxFaults {
			object{item, &err}.bad(item, "want at most %d faults with their repetitions", maxFaults)
		}
		m.Faults = append(m.Faults, f)
	}
	o.end()
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read manifest")
	}
	return m, nil
}

func parseFleet(o object) FleetSpec {
	f := FleetSpec{
		Stages: o.integer("stages", 2, 1, 64), Replicas: o.integer("replicas", 2, 1, 64),
		Routers: o.integer("routers", 1, 1, 16), Samplers: o.integer("samplers", 1, 1, 16),
		Tokenizers:  o.integer("tokenizers", 1, 1, 16),
		KVPositions: o.integer("kv_positions", 16384, 16, 1<<24), Threads: o.integer("threads", 1, 1, 256),
		Args: map[string][]string{},
	}
	args := o.within("args")
	for _, service := range []string{router, tokenizer, sampler, shard} {
		f.Args[service] = args.texts(service)
	}
	args.end()
	o.end()
	return f
}

func parseLoad(o object, seed int64) LoadSpec {
	l := LoadSpec{
		Streams: o.integer("streams", 8, 1, loadtest.MaxStreams), Rate: o.number("rate", 0, 0, 1e6),
		MaxTokens: o.integer("max_tokens", 64, 1, 1<<20),
		Timeout:   o.duration("timeout", time.Minute, 100*time.Millisecond, longest),
	}
	if n := o.typed("tenants", '"', `a string such as "a=4,b=1"`); n != nil {
		tenants, err := loadtest.ParseTenants(n.text)
		if err != nil {
			o.bad(n, "%v", err)
		}
		l.Tenants = tenants
	}
	for _, item := range o.list("prompts") {
		if item.kind == '"' {
			l.Prompts = append(l.Prompts, loadtest.Prompt{Line: item.line, Text: item.text})
			continue
		}
		if item.kind != '{' {
			o.bad(item, "want a string or an object")
			break
		}
		p, err := loadtest.ParsePrompt(item.raw)
		if err != nil {
			o.bad(item, "%v", err)
			break
		}
		p.Line = item.line
		l.Prompts = append(l.Prompts, p)
	}
	o.end()
	return l
}

func (m *Manifest) parseFault(o object) FaultSpec {
	if o.node.kind != '{' {
		o.bad(o.node, "want an object")
		return FaultSpec{}
	}
	f := FaultSpec{
		Line: o.node.line,
		Kind: Kind(o.choice("kind", "", string(Kill), string(Restart), string(Pause), string(Slow), string(Partition),
			string(Delay), string(Reset), string(SlowRead))),
		Target: o.text("target", ""), Pick: o.choice("pick", "random", "random", "each", "all"),
		At: o.duration("at", 0, 0, longest), Every: o.duration("every", 0, 10*time.Millisecond, longest),
		Times: o.integer("times", 1, 1, maxFaults),
		For:   o.duration("for", 5*time.Second, 10*time.Millisecond, longest),
		// A killed member that never comes back is a choice to be made in so many words.
		RestartAfter: o.duration("restart_after", 0, 10*time.Millisecond, longest),
		Factor:       o.number("factor", 4, 1.1, 1000),
		Delay:        o.duration("delay", 20*time.Millisecond, time.Millisecond, time.Minute),
		Direction:    o.choice("direction", "both", "in", "out", "both"),
		Count:        o.integer("count", 16, 1, 1000),
		Promise:      Promise(o.choice("promise", "", promiseNames()...)),
	}
	o.end()
	here := o.node
	switch {
	case f.Kind == "":
		o.bad(here, "want the field kind")
	case f.Kind == SlowRead && f.Target == "":
		f.Target = member(router, 0)
	}
	if f.Times > 1 && f.Every == 0 {
		o.bad(here, "want the field every, because times is %d", f.Times)
	}
	if last := f.At + time.Duration(f.Times-1)*f.Every; last >= m.Duration {
		o.bad(here, "the last fault comes at %v, but the load ends after %v", last, m.Duration)
	}
	names := m.Fleet.match(f.Target)
	switch {
	case len(names) == 0:
		o.bad(here, "target %q matches no member; members are %s", f.Target, strings.Join(m.Fleet.names(), ", "))
	case f.reach() == registry && f.Kind != Kill:
		o.bad(here, "the registry can only be killed")
	case f.reach() == router && (f.Kind == Partition || f.Kind == Delay || f.Kind == Reset):
		o.bad(here, "the load reaches routers over HTTP, where no proxy is: want another target")
	case f.Kind == SlowRead && !strings.HasPrefix(names[0], router):
		o.bad(here, "slow readers need a router as target")
	}
	if f.Promise == "" {
		f.Promise = m.Fleet.promise(f, names)
	}
	return f
}

// reach returns the service of the members that a fault may hit.
func (f FaultSpec) reach() string {
	service, _, _ := strings.Cut(f.Target, "-")
	return service
}

// The services of a fleet.
const (
	router    = "router"
	tokenizer = "tokenizer"
	sampler   = "sampler"
	shard     = "shard"
	registry  = "registry"
)

func member(service string, i int) string { return fmt.Sprintf("%s-%d", service, i) }

func shardName(replica, stage int) string { return fmt.Sprintf("%s-%d-%d", shard, replica, stage) }

// names returns the members of the fleet in the order in which they start.
func (f FleetSpec) names() []string {
	out := []string{registry}
	for _, s := range []struct {
		name string
		n    int
	}{{tokenizer, f.Tokenizers}, {sampler, f.Samplers}} {
		for i := range s.n {
			out = append(out, member(s.name, i))
		}
	}
	for r := range f.Replicas {
		for s := range f.Stages {
			out = append(out, shardName(r, s))
		}
	}
	for i := range f.Routers {
		out = append(out, member(router, i))
	}
	return out
}

// match returns the members whose names a target matches.
func (f FleetSpec) match(target string) []string {
	var out []string
	for _, name := range f.names() {
		if ok, err := path.Match(target, name); err == nil && ok {
			out = append(out, name)
		}
	}
	return out
}

// total reports whether the names hold every replica of a stage, or every member of a service.
func (f FleetSpec) total(names []string) bool {
	hit := map[string]int{} // by stage, and by service
	for _, name := range names {
		parts := strings.Split(name, "-")
		key := parts[0]
		if key == shard {
			key = parts[2]
		}
		if hit[key]++; key == parts[len(parts)-1] && hit[key] == f.Replicas {
			return true
		}
	}
	return hit[sampler] == f.Samplers
}
