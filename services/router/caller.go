package router

import (
	"context"

	"github.com/lamina-mesh/lamina/pkg/auth"
	journalv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/journal/v1"
)

// Meters finds the budgets of callers whose requests go on at this router.
type Meters interface {
	// MeterOf returns the budgets of a caller by its id and the limits that it had where the request began; nil for
	// none.
	MeterOf(id string, requests, tokens int64) *auth.Meter
}

// callerOf returns what the journal keeps of the caller, so that another router charges the same budgets; nil if
// nobody had to say who they are.
func callerOf(ctx context.Context) *journalv1.Caller {
	p := auth.From(ctx)
	if p == nil {
		return nil
	}
	requests, tokens := p.Meter().Limits()
	return &journalv1.Caller{Id: p.ID, RequestsPerMinute: uint64(requests), TokensPerMinute: uint64(tokens)}
}

// charge takes tokens from the budget of a request's owner. They are a debt if nothing is left: a request that was let
// in is not cut because its router has gone.
func (s *Service) charge(c *journalv1.Caller, tokens int) {
	if c.GetId() == "" || s.cfg.Meters == nil || tokens <= 0 {
		return
	}
	requests, limit := c.GetRequestsPerMinute(), c.GetTokensPerMinute()
	if requests > auth.MaxBudget || limit > auth.MaxBudget {
		return // no budget is larger: the record is not one of ours
	}
	s.cfg.Meters.MeterOf(c.GetId(), int64(requests), int64(limit)).Charge(int64(tokens))
}
