package deploy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits and defaults.
const (
	maxDeployments = 1000
	maxName        = 256 // bytes of names and digests
	maxReplicas    = 1000
	maxRetiring    = 16 // versions of a deployment that drain at once
	maxPast        = 32 // digests of a deployment that are remembered
	maxTime        = 30 * 24 * time.Hour

	// DefaultObserve is how long a new version is watched while the one before stays loaded.
	DefaultObserve = time.Minute
	// DefaultCanary is the same for a version that takes only a part of the requests.
	DefaultCanary = 5 * time.Minute
	// DefaultLoad is how long a version may take until all of its pipelines are open.
	DefaultLoad = 10 * time.Minute
)

// State has all deployments.
type State struct {
	Version     uint64       // grows by 1 with each change
	Deployments []Deployment `json:",omitempty"` // by name
}

// Deployment is a name that clients use, with the versions of a model behind it.
type Deployment struct {
	Name string
	Spec
	Live *Version `json:",omitempty"` // takes the requests; nil before the first version is open
	Next *Version `json:",omitempty"` // is loaded beside it, and may take a share of the requests
	// Retiring are versions that take no new requests. They are unloaded when the last request has ended.
	Retiring []Version `json:",omitempty"`
	Rest     Rest      `json:",omitempty"`
	Woken    bool      `json:",omitempty"` // a request has woken it, and no version has become live since
	Off      bool      `json:",omitempty"` // it was undeployed; the name is kept so that its model is not loaded again
	Past     []string  `json:",omitempty"` // digests that were unloaded, the latest last
	// Failed is the version that was rolled back last; nil if none was, or another one has become live since.
	Failed *Failed `json:",omitempty"`
	// Last says what happened last, for people.
	Last string `json:",omitempty"`
}

// Spec is what an operator says of a deployment.
type Spec struct {
	Replicas int `json:",omitempty"` // pipelines; 0 leaves it to the placer
	// Pinned models are never unloaded for others, nor because nobody uses them.
	Pinned bool `json:",omitempty"`
	// Idle is how long nobody has to use the model until it is unloaded; 0 means never. The next request loads it
	// again.
	Idle time.Duration `json:",omitempty"`
	// Canary is the share of the requests that a new version takes before it becomes live: 0 < Canary <= 1.
	Canary float64 `json:",omitempty"`
	// Observe is how long it takes them.
	Observe time.Duration `json:",omitempty"`
	// Load is how long a version may take until it is open.
	Load time.Duration `json:",omitempty"`
}

// Version is a model by its digest.
type Version struct {
	Digest string
	Model  string // its name on the shards
	Canary bool   `json:",omitempty"` // it is open and takes its share of the requests
	// Began is when it has begun to take them, in Unix milliseconds by the clock of the placer at that time; 0 if it
	// has not, or that is not known.
	Began int64 `json:",omitempty"`
	// Try tells apart how often the version was deployed: it is State.Version at that time.
	Try uint64 `json:",omitempty"`
}

// Failed says why a version was rolled back.
type Failed struct {
	Digest, Reason string
	Try            uint64 `json:",omitempty"` // as in Version
}

// Rest says whether the live version is loaded.
type Rest string

// The values of Rest.
const (
	Awake  Rest = ""
	Dozing Rest = "dozing" // it is loaded and takes no requests, to be unloaded when it is quiet
	Asleep Rest = "asleep" // it is not loaded
)

// check returns an Invalid error that names the field.
func (s Spec) check() error {
	switch {
	case s.Replicas < 0 || s.Replicas > maxReplicas:
		return fault.Field("replicas", "want 0 to %d, got %d", maxReplicas, s.Replicas)
	case !(s.Canary >= 0 && s.Canary <= 1):
		return fault.Field("canary", "want a share of 0 to 1, got %v", s.Canary)
	case s.Pinned && s.Idle > 0:
		return fault.Field("idle", "a pinned model is never unloaded: leave one of the two out")
	}
	for name, d := range map[string]time.Duration{"idle": s.Idle, "observe": s.Observe, "load": s.Load} {
		if d < 0 || d > maxTime {
			return fault.Field(name, "want 0 to %v, got %v", maxTime, d)
		}
	}
	return nil
}

// Share is the share of the requests that a new version takes.
func (s *Spec) Share() float64 {
	if s.Canary == 0 {
		return 1
	}
	return s.Canary
}

// ObserveTime is how long it takes them.
func (s *Spec) ObserveTime() time.Duration {
	switch {
	case s.Observe > 0:
		return s.Observe
	case s.Share() < 1:
		return DefaultCanary
	}
	return DefaultObserve
}

// LoadLimit is how long a version may take until it is open.
func (s *Spec) LoadLimit() time.Duration {
	if s.Load > 0 {
		return s.Load
	}
	return DefaultLoad
}

// Clone returns a copy that shares nothing with s.
func (s *State) Clone() *State {
	out := &State{Version: s.Version, Deployments: slices.Clone(s.Deployments)}
	for i := range out.Deployments {
		d := &out.Deployments[i]
		d.Live, d.Next, d.Failed = clone(d.Live), clone(d.Next), clone(d.Failed)
		d.Retiring, d.Past = slices.Clone(d.Retiring), slices.Clone(d.Past)
	}
	return out
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// Find returns the deployment of a name, or nil. It stays part of s.
func (s *State) Find(name string) *Deployment {
	i, found := s.index(name)
	if !found {
		return nil
	}
	return &s.Deployments[i]
}

func (s *State) index(name string) (int, bool) {
	return slices.BinarySearchFunc(s.Deployments, name, func(d Deployment, name string) int {
		return strings.Compare(d.Name, name)
	})
}

// Deploy makes a version the next one of a deployment, which is created if there is none of the name. current is the
// version that answers the name so far without a deployment; it becomes the live one. If the live version is the wanted
// one then only the settings change, and a next one is given up.
func (s *State) Deploy(name string, spec Spec, v Version, current *Version) error {
	if name == "" || len(name) > maxName {
		return fault.Field("name", "want 1 to %d bytes, got %d", maxName, len(name))
	}
	if v.Digest == "" || len(v.Digest) > maxName || len(v.Model) > maxName {
		return fault.Field("model", "want a digest and a name of at most %d bytes", maxName)
	}
	if err := spec.check(); err != nil {
		return err
	}
	i, found := s.index(name)
	if !found {
		if len(s.Deployments) >= maxDeployments {
			return fault.New(fault.Exhausted, "deploy %s: there are %d deployments", name, maxDeployments)
		}
		s.Deployments = slices.Insert(s.Deployments, i, Deployment{Name: name, Live: clone(current)})
	}
	d := &s.Deployments[i]
	if d.Off {
		d.Off, d.Rest = false, Awake
	}
	d.Spec = spec
	v.Canary, v.Began, v.Try = false, 0, s.Version
	switch {
	case d.Live != nil && d.Live.Digest == v.Digest:
		d.dropNext()
		d.Rest = Awake
		d.Last = "its settings have changed"
	case d.Next != nil && d.Next.Digest == v.Digest:
		d.Last = "its settings have changed"
	default:
		d.dropNext()
		d.Next, d.Failed = &v, nil
		d.Rest = Awake // the version before has to be there if this one fails
		d.Last = "a version is being loaded"
	}
	if len(d.Retiring) > maxRetiring {
		return fault.New(fault.Exhausted, "deploy %s: %d versions before it still have requests", name, maxRetiring)
	}
	d.keep(v.Digest)
	return nil
}

// keep takes a version that is wanted again off the lists of those that are not.
func (d *Deployment) keep(digest string) {
	d.Retiring = slices.DeleteFunc(d.Retiring, func(v Version) bool { return v.Digest == digest })
	d.Past = slices.DeleteFunc(d.Past, func(past string) bool { return past == digest })
}

// dropNext gives the next version up. One that has taken no request is quiet, but for those that it may still have
// from an earlier time.
func (d *Deployment) dropNext() {
	if d.Next != nil {
		d.retire(*d.Next)
		d.Next = nil
	}
}

// retire lets a version end its requests.
func (d *Deployment) retire(v Version) {
	v.Canary, v.Began = false, 0
	d.keep(v.Digest)
	d.Retiring = append(d.Retiring, v)
}

// forget remembers a version that was unloaded, so that it is not loaded again unless it is deployed.
func (d *Deployment) forget(digest string) {
	d.keep(digest)
	if d.Past = append(d.Past, digest); len(d.Past) > maxPast {
		d.Past = slices.Delete(d.Past, 0, len(d.Past)-maxPast)
	}
}

// Undeploy takes a name out of service. Its versions end their requests. current is the version that answers the name
// without a deployment, if any.
func (s *State) Undeploy(name string, current *Version) error {
	i, found := s.index(name)
	switch {
	case found && s.Deployments[i].Off, !found && current == nil:
		return fault.New(fault.NotFound, "undeploy %q: there is no such deployment", name)
	case !found && len(s.Deployments) >= maxDeployments:
		return fault.New(fault.Exhausted, "undeploy %s: there are %d deployments", name, maxDeployments)
	case !found:
		s.Deployments = slices.Insert(s.Deployments, i, Deployment{Name: name, Live: clone(current)})
	}
	d := &s.Deployments[i]
	d.dropNext()
	switch {
	case d.Live == nil:
	case d.Rest == Asleep:
		d.forget(d.Live.Digest)
	default:
		d.retire(*d.Live)
	}
	d.Live, d.Failed, d.Rest, d.Off, d.Last = nil, nil, Awake, true, "it was undeployed"
	return nil
}

// RollBack gives up the next version of a deployment if it is the given one, and reports whether it was. try is that of
// the version, so that one that has been deployed again does not fall for what its last try has done; 0 is any.
func (s *State) RollBack(name, digest string, try uint64, reason string) bool {
	d := s.Find(name)
	if d == nil || d.Next == nil || d.Next.Digest != digest || try != 0 && d.Next.Try != try {
		return false
	}
	d.rollBack(reason)
	return true
}

func (d *Deployment) rollBack(reason string) {
	d.Failed, d.Last = &Failed{d.Next.Digest, reason, d.Next.Try}, "rolled back: "+reason
	d.dropNext()
}

// Wake makes a deployment that sleeps load its version, and reports whether it did sleep.
func (s *State) Wake(name string) bool {
	d := s.Find(name)
	if d == nil || d.Off || d.Rest == Awake {
		return false
	}
	d.Rest, d.Woken, d.Last = Awake, true, "a request has woken it"
	return true
}

// Want says how a model is to be loaded.
type Want struct {
	Replicas int // 0 leaves it to the placer
	// Yield says that no other model may lose its place for it.
	Yield bool
}

// Places reports whether a model that shards have is to be loaded. all says that models which belong to no deployment
// are loaded too.
func (s *State) Places(model, digest string, all bool) (w Want, ok bool) {
	known := false
	want := func(replicas int, yield bool) {
		w.Replicas, w.Yield = max(w.Replicas, replicas), yield && (!ok || w.Yield)
		ok = true
	}
	for i := range s.Deployments {
		d := &s.Deployments[i]
		known = known || d.Name == model || slices.Contains(d.Past, digest)
		if d.Live != nil && d.Live.Digest == digest {
			known = true
			if d.Rest != Asleep {
				want(d.Replicas, false)
			}
		}
		if d.Next != nil && d.Next.Digest == digest {
			want(d.Replicas, d.Live != nil)
		}
		for _, v := range d.Retiring {
			if v.Digest == digest {
				want(d.Replicas, true)
			}
		}
	}
	return w, ok || all && !known
}

// Of returns the deployments of which a digest is the live or the next version. They stay part of s.
func (s *State) Of(digest string) []*Deployment {
	var out []*Deployment
	for i := range s.Deployments {
		d := &s.Deployments[i]
		if d.Live != nil && d.Live.Digest == digest || d.Next != nil && d.Next.Digest == digest {
			out = append(out, d)
		}
	}
	return out
}

// Hidden reports whether a digest is only answered by name of the digest, or by that of its model: it is the next or a
// retiring version and not the live one of any deployment.
func (s *State) Hidden(digest string) bool {
	hidden := false
	for i := range s.Deployments {
		d := &s.Deployments[i]
		if d.Live != nil && d.Live.Digest == digest {
			return false
		}
		hidden = hidden || d.Next != nil && d.Next.Digest == digest ||
			slices.ContainsFunc(d.Retiring, func(v Version) bool { return v.Digest == digest })
	}
	return hidden
}

// starving begins Deployment.Last while there is no room for the live version.
const starving = "there is no room for it: "

// Starving reports whether there was no room for the live version when it was last wanted.
func (d *Deployment) Starving() bool { return strings.HasPrefix(d.Last, starving) }

// Status names the state of a deployment for people.
func (d *Deployment) Status() string {
	switch {
	case d.Off && len(d.Retiring) > 0:
		return "ending"
	case d.Off:
		return "undeployed"
	case d.Next != nil && d.Next.Canary:
		return fmt.Sprintf("canary %.3g %%", 100*d.Share())
	case d.Next != nil:
		return "loading"
	case d.Rest != Awake:
		return string(d.Rest)
	case d.Live == nil:
		return "failed"
	}
	return "live"
}
