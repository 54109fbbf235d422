package trainer

import (
	"slices"

	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// part lets chains go between two steps whose shards are about to stop. If the others have all of their state, the run
// goes on with these. If not, a checkpoint of the last step is written, and the run goes on from it on other shards: an
// error says so.
func (t *training) part(f *fleet, step uint64) error {
	leaving := func(c *chain) bool { return c.leaving.Load() }
	if t.saving != nil || !slices.ContainsFunc(f.chains, leaving) {
		return nil // a checkpoint on its way needs its writers
	}
	left := func(n int) {
		t.run.update(func(r *trainerv1.Run) { r.Left += uint64(n) })
	}
	if stay := slices.ContainsFunc(f.chains, func(c *chain) bool { return !leaving(c) }); !f.elastic() || !stay {
		if err := t.finish(f, step); err != nil {
			return err
		}
		n := 0
		for _, c := range f.chains {
			if leaving(c) {
				n++
				t.happenedTo(c, eventLeft, step, nil)
			}
		}
		left(n)
		return fault.New(fault.Unavailable, "step %d: shards are about to stop", step)
	}
	var gone []*chain
	f.chains = slices.DeleteFunc(f.chains, func(c *chain) bool {
		if leaving(c) {
			gone = append(gone, c)
			return true
		}
		return false
	})
	for _, c := range gone {
		t.run.service.log.Info("a replica leaves", "run", t.run.name, "step", step, "replica", c.replica)
		t.happenedTo(c, eventLeft, step, nil)
		c.close()
	}
	left(len(gone))
	return nil
}
