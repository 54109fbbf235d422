package app

import (
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
	"github.com/lamina-mesh/lamina/services/router"
)

// Peer returns a further router over the services of the mesh, with the journal of its process. Its Run is
// left to the test.
func (m *Mesh) Peer() *router.Service {
	return router.New(router.Config{Dialer: m.dialer, Registry: m.Registry(), Journal: m.Journal()})
}

// RouterServiceConfig returns the settings of the router service.
func RouterServiceConfig(c RouterConfig) router.Config { return c.config() }

// Registry returns the registry of the mesh.
func (m *Mesh) Registry() discovery.Registry { return m.process.registry }

// Journal returns the journal of requests.
func (m *Mesh) Journal() journal.Journal { return m.process.journal }

// Cut breaks all connections to a service of the mesh, and refuses new ones.
func (m *Mesh) Cut(name string) { m.process.network.Cut(name, true) }

// Mend lets a service be reached again.
func (m *Mesh) Mend(name string) { m.process.network.Cut(name, false) }

// WithNetwork returns the configuration with a network of the test's own, which may have faults from the start on.
func (c MeshConfig) WithNetwork(n *memnet.Network) MeshConfig {
	c.network = n
	return c
}

// ParseTools reads the content of a file of tools, and returns its rounds and the bytes of its pages.
func ParseTools(text []byte) (rounds int, pageBytes int64, err error) {
	f, err := parseTools("tools.yaml", text)
	if err != nil {
		return 0, 0, err
	}
	if f.Page != nil {
		pageBytes = f.Page.Bytes
	}
	return f.Rounds, pageBytes, nil
}

// Wanted is the set of models of the store that a mesh shall serve.
type Wanted struct{ w wanted }

// NewWanted returns an empty set.
func NewWanted() *Wanted { return &Wanted{wanted{digests: map[string]string{}}} }

// Add adds a model.
func (w *Wanted) Add(name, digest string) { w.w.add(name, digest) }

// Remove forgets a model.
func (w *Wanted) Remove(name string) { w.w.remove(name) }

// Has reports whether a model is in the set.
func (w *Wanted) Has(name, digest string) bool { return w.w.has(name, digest) }
