package consul

import (
	"context"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Members returns the instances of all services of Lamina in the catalogue, those too that fail their checks.
func (r *Registry) Members(ctx context.Context) ([]discovery.Member, error) {
	entries, err := r.entries(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]discovery.Member, 0, len(entries))
	for _, e := range entries {
		m := discovery.Member{Healthy: true, Instance: discovery.Instance{
			ID: e.Service.ID, Service: strings.TrimPrefix(e.Service.Service, prefix), Meta: e.Service.Meta,
			Addr: net.JoinHostPort(e.Service.Address, strconv.Itoa(e.Service.Port)),
		}}
		for _, c := range e.Checks {
			if c.Status != api.HealthPassing && m.Healthy {
				m.Healthy, m.Why = false, strings.TrimSpace(c.Status+" "+c.Output)
			}
		}
		out = append(out, m)
	}
	discovery.SortMembers(out)
	return out, nil
}

// entries returns the instances of all services of Lamina.
func (r *Registry) entries(ctx context.Context) ([]*api.ServiceEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	options := (&api.QueryOptions{}).WithContext(ctx)
	names, _, err := r.client.Catalog().Services(options)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "list services of consul")
	}
	var out []*api.ServiceEntry
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		entries, _, err := r.client.Health().Service(name, "", false, options)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "list instances of %s in consul", name)
		}
		out = append(out, entries...)
	}
	return out, nil
}

// Remove removes an instance from the agent, or from the catalogue if another agent has registered it. An agent
// that still runs and has it puts it back.
func (r *Registry) Remove(ctx context.Context, id string) error {
	entries, err := r.entries(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(entries, func(e *api.ServiceEntry) bool { return e.Service.ID == id })
	if at < 0 {
		return fault.New(fault.NotFound, "remove %s: consul has no such instance", id)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	err = r.client.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
	if notFound(err) && entries[at].Node != nil {
		_, err = r.client.Catalog().Deregister(&api.CatalogDeregistration{Node: entries[at].Node.Node, ServiceID: id},
			(&api.WriteOptions{}).WithContext(ctx))
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "remove %s from consul", id)
	}
	return nil
}

// replace removes the instances from the agent whose place a new one has taken.
func (r *Registry) replace(ctx context.Context, i discovery.Instance) error {
	known, err := r.client.Agent().ServicesWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	for id, s := range known {
		old := discovery.Instance{ID: id, Service: strings.TrimPrefix(s.Service, prefix),
			Addr: net.JoinHostPort(s.Address, strconv.Itoa(s.Port))}
		if !i.Succeeds(old) {
			continue
		}
		err := r.client.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
		if err != nil && !notFound(err) {
			return err
		}
	}
	return nil
}
