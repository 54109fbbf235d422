package router

import (
	"maps"
	"slices"
)

// bases lists the models that have an adapter with the name: deployments by their names, and others by their digests.
// The caller holds mu of the Service.
func (s *Service) bases(name string) []string {
	found := map[string]bool{}
	for key := range s.adapters.names {
		if key.name != name {
			continue
		}
		base := key.model
		for i := range s.deploys.state.Deployments {
			if d := &s.deploys.state.Deployments[i]; slices.Contains(versions(d), key.model) {
				base = d.Name
			}
		}
		found[base] = true
	}
	return slices.Collect(maps.Keys(found))
}

// otherVersion returns the digest of another version of a model that has an adapter with the name; empty if there is
// none. An upgrade leaves such an adapter behind: it belongs to the weights that it was trained on. The caller holds
// mu.
func (s *Service) otherVersion(model, name string) string {
	names := map[string]bool{} // digests
	for key := range s.adapters.names {
		names[key.model] = names[key.model] || key.name == name
	}
	for _, in := range s.adapters.waiting() { // their model is not loaded any more
		names[in.Model] = names[in.Model] || in.Name == name
	}
	for _, d := range s.deploys.state.Of(model) {
		for _, digest := range versions(d) {
			if digest != model && names[digest] {
				return digest
			}
		}
	}
	return ""
}
