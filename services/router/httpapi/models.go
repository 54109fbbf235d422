package httpapi

import (
	"context"

	"github.com/lamina-mesh/lamina/pkg/auth"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// FindModel returns the model of a list that a name means, as requests for generations name it: by its name or digest,
// with the name of an adapter behind a colon or without one, or by the name of an adapter that no other model has. An
// empty name means the only model. It returns nil if there is none.
func FindModel(models []*routerv1.Model, name string) *routerv1.Model {
	if name == "" && len(models) == 1 {
		return models[0]
	}
	for _, m := range models {
		if m.GetName() == name || m.GetDigest() == name {
			return m
		}
	}
	var found *routerv1.Model
	for _, m := range models {
		for _, a := range m.GetAdapters() {
			switch name {
			case m.GetName() + ":" + a.GetName(), m.GetDigest() + ":" + a.GetName():
				return m
			case a.GetName(), ":" + a.GetName():
				if found != nil {
					return nil
				}
				found = m
			}
		}
	}
	return found
}

// Listed is a model as lists of models show it: alone, or with one of its adapters.
type Listed struct {
	*routerv1.Model
	ID      string            // the name, with that of the adapter
	Adapter *routerv1.Adapter // nil for the model alone
}

// List returns the models that the caller may use, each before its adapters. The backend has left out those of which
// the caller may use neither the model nor an adapter.
func List(ctx context.Context, models []*routerv1.Model) []Listed {
	var out []Listed
	for _, m := range models {
		if auth.MayUse(ctx, m.GetName(), m.GetDigest()) {
			out = append(out, Listed{Model: m, ID: m.GetName()})
		}
		for _, a := range m.GetAdapters() {
			out = append(out, Listed{m, m.GetName() + ":" + a.GetName(), a})
		}
	}
	return out
}
