package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/inventory"
	"github.com/lamina-mesh/lamina/pkg/plan"
)

// leader is a placer that holds the lock.
type leader struct {
	*placer
	token   uint64 // of the lock
	fence   uint64 // of the plans and assignments
	began   time.Time
	stepped time.Time // of the keeper
	seen    time.Time // placer.stirred at that time
	doc     *plan.Document
	keeper  *plan.Keeper
	work    *sync.WaitGroup

	calibration plan.Calibration
	observed    map[string]observed      // by pipeline
	probes      map[string]*encoderProbe // by chain and digest; mu of the placer guards it
	wrote       time.Time                // the plan
	latest      *plan.Plan               // as the keeper has decided last, with what it does not cover
	request     plan.Request
	lives       *deploy.Keeper
	looked      time.Time // at the deployments
	// seenState is the version of the deployments at that time.
	seenState uint64
	wanted    uint64 // version of the deployments with which the keeper decided last
}

// claim writes the plan of the placer before under the own token, so that the one before cannot write another.
// It changes nothing else: a lost placer is replaced without a change of the plan.
func (l *leader) claim(ctx context.Context) error {
	for {
		e, err := l.cfg.Registry.Get(ctx, planKey)
		if err != nil {
			return err
		}
		l.doc = &plan.Document{}
		if e.Version != 0 {
			if l.doc, err = plan.ParseDocument(e.Value); err != nil {
				l.s.log.Warn("read the plan: begin anew", "error", err)
				l.doc = &plan.Document{}
			}
		}
		// Each fence is in the registry before a shard hears of it, and reads are consistent. So a higher one that this
		// router or a shard knows means that the registry has lost its data, or was restored from an older snapshot:
		// its tokens have gone back, and a lower one belongs to a later lock. If another router takes the lock between
		// the read and the look at the shards, the write below fails, since the entry has another version.
		highest := l.highestFence()
		back := e.Version == 0 || l.doc.Fence < highest
		l.mu.Lock()
		if known := l.placer.doc; back && known != nil && (e.Version == 0 || known.Fence > l.doc.Fence) {
			l.doc = known
		}
		l.mu.Unlock()
		next := *l.doc
		if back && next.Base+l.token <= highest {
			next.Base = highest
		}
		l.fence = next.Base + l.token
		next.Fence, next.Version = l.fence, l.doc.Version+1
		err = l.write(ctx, &next, e.Version)
		if fault.CodeOf(err) == fault.Aborted && l.fence >= l.doc.Fence { // the placer before has written meanwhile
			continue
		}
		if err == nil {
			l.keeper = plan.NewKeeper(l.cfg.Keeper, &l.doc.Plan)
			l.calibration = l.doc.Calibration
		}
		return err
	}
}

// highestFence returns the highest fence that this router and the shards know of.
func (l *leader) highestFence() uint64 {
	highest := uint64(0)
	l.mu.Lock()
	if l.placer.doc != nil {
		highest = l.placer.doc.Fence
	}
	l.mu.Unlock()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, d := range l.s.held {
		if f := d.resp.GetInventory().GetFence(); f < maxFence {
			highest = max(highest, f)
		}
	}
	return highest
}

// write replaces the plan in the registry, whose entry has a version.
func (l *leader) write(ctx context.Context, next *plan.Document, version uint64) error {
	if err := l.doc.Replace(next); err != nil {
		return err
	}
	text, err := next.Encode()
	if err != nil {
		return err
	}
	if err := l.cfg.Registry.Swap(ctx, planKey, text, version); err != nil {
		return err
	}
	l.doc, l.wrote = next, time.Now()
	l.take(next)
	return nil
}

// step lets the keeper decide, and writes what it has decided.
func (l *leader) step(ctx context.Context) error {
	if err := l.stepDeployments(ctx); err != nil {
		l.s.log.Warn("keep deployments", "error", err)
	}
	shards, stirred := l.living()
	deployed := l.s.deployed().Version
	if l.unsettled(shards, stirred) ||
		stirred.Equal(l.seen) && deployed == l.wanted && time.Since(l.stepped) < stepEvery {
		return nil
	}
	options := l.options()
	options.RouterMS, options.FirstMS, options.Hop = l.routerMS(), l.calibration.FirstMS, l.calibration.Hop
	r, left := inventory.Request(shards, options)
	l.mu.Lock()
	l.left = left
	l.mu.Unlock()
	if len(r.Models) == 0 && len(l.doc.Plan.Pipelines) == 0 {
		return nil
	}
	l.stepped, l.seen, l.wanted = time.Now(), stirred, deployed
	decided, err := l.keeper.Step(time.Since(l.began), r)
	if err != nil {
		l.s.log.Warn("place layers", "error", err)
		return nil
	}
	l.latest, l.request = decided.Plan, r
	if decided.Reason == "" {
		l.observe(decided.Plan)
		return l.correct(ctx, decided.Plan)
	}
	next := &plan.Document{
		Fence: l.fence, Base: l.doc.Base, Version: l.doc.Version + 1, Plan: *decided.Plan, Reason: decided.Reason,
		Calibration: l.calibration,
	}
	next.MoveLayers, next.MoveBytes = plan.Loads(decided.Moves)
	if err := l.replace(ctx, next); err != nil {
		return err
	}
	l.s.m.moveBytes.Add(float64(next.MoveBytes))
	l.s.log.Info("change the plan", "plan", next.Version, "reason", next.Reason, "pipelines", len(next.Plan.Pipelines),
		"move_layers", next.MoveLayers, "move_bytes", next.MoveBytes)
	return nil
}

// correct writes what is expected of the pipelines now, if that differs from what was expected before. The plan and
// the reason for it stay.
func (l *leader) correct(ctx context.Context, now *plan.Plan) error {
	if time.Since(l.wrote) < l.cfg.Correct {
		return nil
	}
	next := l.doc.Corrected(now, correctMore)
	if next == nil {
		return nil
	}
	next.Fence, next.Version, next.Calibration = l.fence, l.doc.Version+1, l.calibration
	if err := l.replace(ctx, next); err != nil {
		return err
	}
	l.s.log.Info("correct what is expected of the plan", "plan", next.Version, "router_ms", l.calibration.RouterMS,
		"first_ms", l.calibration.FirstMS, "hop_scale", l.calibration.Hop(1))
	return nil
}

// replace writes the next plan unless another router has written one.
func (l *leader) replace(ctx context.Context, next *plan.Document) error {
	e, err := l.cfg.Registry.Get(ctx, planKey)
	if err != nil {
		return err
	}
	if e.Version != 0 {
		stored, err := plan.ParseDocument(e.Value)
		if err == nil && (stored.Fence != l.doc.Fence || stored.Version != l.doc.Version) {
			return fault.New(fault.Aborted, "write plan %d: another router has written plan %d", next.Version,
				stored.Version)
		}
	}
	return l.write(ctx, next, e.Version)
}

// unsettled reports whether it is too early for a plan: hosts are still joining, or a new placer has not heard yet
// of hosts that its predecessor has used.
func (l *leader) unsettled(shards []inventory.Shard, stirred time.Time) bool {
	if len(l.doc.Plan.Pipelines) == 0 {
		for _, s := range shards { // a host that measures its speed will be there soon
			i := s.Description.GetInventory()
			if i.GetAssignable() && len(i.GetTimes()) < len(i.GetOffers()) && time.Since(l.began) < settleMost {
				return true
			}
		}
		return len(shards) == 0 || time.Since(stirred) < l.cfg.Settle && time.Since(l.began) < settleMost
	}
	if time.Since(l.began) >= settleKnown {
		return false
	}
	for _, pipeline := range l.doc.Plan.Pipelines {
		for _, stage := range pipeline.Stages {
			if !slices.ContainsFunc(shards, func(s inventory.Shard) bool { return s.ID == stage.Host }) {
				return true
			}
		}
	}
	return false
}
