package router

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// silentAfter is the default of Placement.Silent. A probe begins at most placeEvery after a host has frozen, and
	// the next plan is made as soon as the probe has ended: that leaves 350 ms of two seconds to make and write it.
	silentAfter = 1400 * time.Millisecond
	waitStep    = 350 * time.Millisecond // of a wait for an answer
	lateMost    = 250 * time.Millisecond // by which a step may be late and still count in full
	deadAfter   = 2                      // probes in a row that find nobody
	backAfter   = 2                      // quick answers in a row
	backSlow    = 60                     // answers in a row

	ownTick   = 100 * time.Millisecond // between two looks at how late this process is itself
	ownKept   = 0.98                   // of the worst lateness after each tick without another
	ownFactor = 6                      // processes have to be woken so often for a question and its answer
	ownMost   = 10 * time.Second       // by which lateness can lengthen the limit
)

// errSilent ends a probe that is not answered.
var errSilent = errors.New("the host has not answered in time")

// heartbeat says whether a host is alive, by how the placer's probes end. One probe runs at a time. It has no clock.
//
// A host is lost when one probe is not answered within the limit, or when two in a row find nobody. A slow host that
// answers each probe within the limit is never lost, however late its answers are. Once lost, a host is alive again
// after two answers in a row that took at most half of the limit: so one whose answers take about as long as the limit
// is lost once, and does not come and go with each probe. One that is slow for good comes back after a minute or so of
// answers within the limit: there may be no other host for its layers.
type heartbeat struct {
	known bool // it has answered
	lost  bool
	fails int // probes in a row that found nobody
	quick int // quick answers in a row since it was lost
	slow  int // answers of any kind in a row since then
}

func (b *heartbeat) alive() bool { return b.known && !b.lost }

// answered takes an answer that came after a time, of a probe with a limit.
func (b *heartbeat) answered(took, limit time.Duration) {
	b.known, b.fails = true, 0
	if !b.lost {
		return
	}
	b.slow++
	if b.quick++; took > limit/2 {
		b.quick = 0
	}
	if b.quick >= backAfter || b.slow >= backSlow {
		b.lost, b.quick, b.slow = false, 0, 0
	}
}

// refused takes a probe that found nobody.
func (b *heartbeat) refused() {
	b.fails, b.quick, b.slow = b.fails+1, 0, 0
	b.lost = b.lost || b.fails >= deadAfter
}

// silent takes a probe that was not answered within the limit.
func (b *heartbeat) silent() { b.lost, b.quick, b.slow = true, 0, 0 }

// lateness is how late this process wakes up. On a machine that has too much to do it is late itself, and so is every
// process on it, and the way there and back: then silence for the usual time proves nothing. So probes get as much more
// time as that of several such delays. It has no clock.
type lateness struct {
	worst time.Duration // of late, fading with each tick
}

// ticked takes how late a tick came.
func (l *lateness) ticked(late time.Duration) {
	l.worst = max(min(late, ownMost/ownFactor), time.Duration(float64(l.worst)*ownKept))
}

// limit returns how long a host may take to answer for which a time suffices on a machine that has nothing else to do.
func (l *lateness) limit(calm time.Duration) time.Duration { return calm + ownFactor*l.worst }

// watchLateness measures how late this process wakes up, until ctx ends.
func (p *placer) watchLateness(ctx context.Context) {
	timer := time.NewTimer(ownTick)
	defer timer.Stop()
	for {
		begin := time.Now()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		took := time.Since(begin)
		timer.Reset(ownTick)
		p.mu.Lock()
		p.late.ticked(max(0, took-ownTick))
		p.mu.Unlock()
	}
}

// waitOut waits for a limit or the end of ctx. It waits in steps and counts a step that lasted much longer as a step: a
// process that was stopped meanwhile, and has its answers still in its sockets, has not waited for that time.
func waitOut(ctx context.Context, limit time.Duration) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for limit > 0 && ctx.Err() == nil {
		step, begin := min(waitStep, limit), time.Now()
		timer.Reset(step)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		limit -= counted(step, time.Since(begin))
	}
}

// counted returns what a step of a wait counts that has taken a time.
func counted(step, took time.Duration) time.Duration {
	if took > step+lateMost {
		return step
	}
	return took
}

// ask describes a host, and wakes the leader if that shows that the host is lost or back.
func (p *placer) ask(ctx context.Context, id string, h *placed) {
	limited, cancel := context.WithCancelCause(ctx)
	p.mu.Lock()
	limit := p.late.limit(p.cfg.Silent)
	p.mu.Unlock()
	var wait sync.WaitGroup
	wait.Go(func() {
		waitOut(limited, limit)
		cancel(errSilent)
	})
	begin := time.Now()
	resp, err := p.s.askShard(limited, h.addr)
	took, silent := time.Since(begin), errors.Is(context.Cause(limited), errSilent)
	cancel(nil)
	wait.Wait()
	if err == nil {
		p.s.redescribe(id, h.addr, resp)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h.asking = false
	was := h.alive()
	switch {
	case err == nil:
		h.desc = resp
		h.beat.answered(took, limit)
	case ctx.Err() != nil:
		return
	case silent:
		h.troubled = time.Now()
		h.beat.silent()
	default:
		h.troubled = time.Now()
		h.beat.refused()
	}
	if was == h.alive() || p.hosts[id] != h {
		return
	}
	p.stirred = time.Now()
	select {
	case p.stir <- struct{}{}:
	default:
	}
	if was {
		p.s.log.Info("a host does not answer", "id", id, "address", h.addr, "waited", took, "error", err)
	}
}

func (h *placed) alive() bool { return h.desc != nil && h.beat.alive() }
