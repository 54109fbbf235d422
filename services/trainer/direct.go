package trainer

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// The values of Gradients.Direct.
const (
	directAuto = "auto"
	directOff  = "off"
)

// directTries is how many attempts in a row may lose a link between replicas of one machine before gradients go
// over the bus only: the name of a machine may be wrong, or its shards may not reach each other.
const directTries = 2

// linkError says that a stage has lost the link to another replica.
type linkError struct {
	*shardv1.LinkBroken
	by *stage
}

func (e *linkError) Error() string {
	return fmt.Sprintf("step %d: layers %v at %s: %s", e.GetStep(), e.by.spans, e.by.addr, e.GetMessage())
}

// FaultCode returns Unavailable.
func (e *linkError) FaultCode() fault.Code { return fault.Unavailable }

// direct reports whether replicas on one machine exchange gradients directly.
func (t *training) direct() bool {
	m := t.run.manifest
	return m.Gradients.Direct != directOff && m.DiLoCo == nil && t.torn < directTries
}

// tear notes that replicas that are all alive do not reach each other.
func (t *training) tear(step uint64, err error) {
	if t.torn++; t.torn == directTries {
		t.run.service.log.Warn("gradients go over the bus only", "run", t.run.name, "error", err)
		t.happened(&trainerv1.RunEvent{Step: step, Kind: eventBusOnly, Message: err.Error()})
	}
}

// linked notes an attempt that has succeeded.
func (t *training) linked() {
	if t.torn < directTries {
		t.torn = 0
	}
}

// machineName names the machine of a shard. One that does not know it shares it with nobody.
func machineName(addr, host string) string {
	if host == "" {
		return "at " + addr
	}
	return host
}

// sharesMachines reports whether a stage of two chains is on one machine.
func (f *fleet) sharesMachines() bool {
	for i := range f.layout.stages {
		seen := map[string]bool{}
		for _, c := range f.chains {
			name := machineName(c.stages[i].addr, c.stages[i].host)
			if seen[name] {
				return true
			}
			seen[name] = true
		}
	}
	return false
}

// places lists where the stages of a chain are. It numbers the machines.
func (c *chain) places(numbers map[string]uint32) []*shardv1.Place {
	var out []*shardv1.Place
	for _, s := range c.stages {
		name := machineName(s.addr, s.host)
		n, ok := numbers[name]
		if !ok {
			n = uint32(len(numbers))
			numbers[name] = n
		}
		out = append(out, &shardv1.Place{Address: s.addr, Host: n})
	}
	return out
}
