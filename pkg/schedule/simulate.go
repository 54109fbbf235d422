package schedule

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Costs are the durations of the passes of one micro-batch over all spans of a stage. A Backward
// takes Input + Weight. Sending takes no time.
type Costs struct{ Forward, Input, Weight float64 }

// of returns the duration of an action on one of the spans of a stage.
func (c Costs) of(kind Kind, spans int) float64 {
	var cost float64
	switch kind {
	case Forward:
		cost = c.Forward
	case Backward:
		cost = c.Input + c.Weight
	case BackwardInput:
		cost = c.Input
	case BackwardWeight:
		cost = c.Weight
	}
	return cost / float64(spans)
}

// Timed is an action with its start and end.
type Timed struct {
	Action
	Start, End float64
}

// Result is the result of a simulation.
type Result struct {
	Makespan float64   // time at which the last action ends
	Bubble   float64   // share of all stages' time until then that is spent waiting
	Idle     []float64 // for each stage, the share of its time that is spent waiting
	// Peak is the largest number of micro-batches whose activations a stage holds at once. One
	// span of several counts as a part of one. Activations are held from the forward pass until
	// the backward pass, or the weight pass if there is one.
	Peak     []float64
	Timeline [][]Timed // for each stage, its actions in order
}

// Deadlock says that no stage can go on. It names the first stage that has actions left, and the
// action that it cannot start.
type Deadlock struct {
	Stage  int
	Action Action
	Needs  string // what the action waits for
}

// Error describes the deadlock.
func (d *Deadlock) Error() string {
	return fmt.Sprintf("simulate schedule: deadlock: stage %d cannot start %v, which needs %s", d.Stage, d.Action,
		d.Needs)
}

// FaultCode returns fault.Invalid: the lists are wrong.
func (d *Deadlock) FaultCode() fault.Code { return fault.Invalid }

// simulation is the state of Simulate.
type simulation struct {
	lists        [][]Action
	stages       int
	spans, micro int
	ended        [BackwardWeight + 1][]float64 // by kind: the end at (position in the chain, micro-batch); -1 before
}

// Simulate runs the lists of all stages. Each stage starts its next action as soon as what the
// action needs is there. An error is a *Deadlock, or names an action that is not possible.
func Simulate(lists [][]Action, costs Costs) (Result, error) {
	s := &simulation{lists: lists, stages: len(lists)}
	total := 0
	for i, list := range lists {
		for _, a := range list {
			if a.Kind < Forward || a.Kind > BackwardWeight || a.Micro < 0 || a.Micro >= MaxMicro || a.Span < 0 ||
				a.Span >= MaxSpans {
				return Result{}, fault.New(
					fault.Invalid,
					"simulate schedule: stage %d: action %d of micro-batch %d on "+
						"span %d is out of range",
					i,
					a.Kind,
					a.Micro,
					a.Span,
				)
			}
			s.spans, s.micro = max(s.spans, a.Span+1), max(s.micro, a.Micro+1)
		}
		total += len(list)
	}
	for k := range s.ended {
		s.ended[k] = make([]float64, s.stages*s.spans*s.micro)
		for i := range s.ended[k] {
			s.ended[k][i] = -1
		}
	}
	return s.run(total, costs)
}

func (s *simulation) run(total int, costs Costs) (Result, error) {
	r := Result{Idle: make([]float64, s.stages), Peak: make([]float64, s.stages), Timeline: make([][]Timed, s.stages)}
	clock, busy := make([]float64, s.stages), make([]float64, s.stages)
	held := make([]int, s.stages)
	// Every round moves each stage as far as it gets. What it needs from later stages of the same
	// round is there in the next one. A round in which nothing moves is a deadlock.
	for done := 0; done < total; {
		before := done
		for stage, list := range s.lists {
			for len(r.Timeline[stage]) < len(list) {
				a := list[len(r.Timeline[stage])]
				start, needs := s.ready(stage, a)
				if needs != "" {
					break
				}
				if s.end(a.Kind, stage, a) >= 0 {
					return r, fault.New(fault.Invalid, "simulate schedule: stage %d has %v twice", stage, a)
				}
				cost := costs.of(a.Kind, s.spans)
				start = max(start, clock[stage])
				clock[stage] = start + cost
				busy[stage] += cost
				s.ended[a.Kind][s.index(stage, a)] = clock[stage]
				r.Timeline[stage] = append(r.Timeline[stage], Timed{a, start, clock[stage]})
				switch a.Kind {
				case Forward:
					held[stage]++
					r.Peak[stage] = max(r.Peak[stage], float64(held[stage])/float64(s.spans))
				case Backward, BackwardWeight:
					held[stage]--
				case BackwardInput: // the weight pass still needs the activations
				}
				done++
			}
		}
		if done == before {
			return r, s.deadlock(r.Timeline)
		}
	}
	for _, c := range clock {
		r.Makespan = max(r.Makespan, c)
	}
	if r.Makespan > 0 {
		for i, b := range busy {
			r.Idle[i] = 1 - b/r.Makespan
			r.Bubble += r.Idle[i] / float64(s.stages)
		}
	}
	return r, nil
}

// deadlock describes the first stage with actions left.
func (s *simulation) deadlock(timeline [][]Timed) error {
	for stage, list := range s.lists {
		if at := len(timeline[stage]); at < len(list) {
			_, needs := s.ready(stage, list[at])
			return &Deadlock{Stage: stage, Action: list[at], Needs: needs}
		}
	}
	return nil
}

func (s *simulation) index(stage int, a Action) int { return (a.Span*s.stages+stage)*s.micro + a.Micro }

// end returns when a pass of a's micro-batch over a's span ended, or -1.
func (s *simulation) end(kind Kind, stage int, a Action) float64 {
	return s.ended[kind][s.index(stage, a)]
}

// ready returns the time from which on an action can start. If something that it needs has not
// ended, needs says what.
func (s *simulation) ready(stage int, a Action) (start float64, needs string) {
	need := func(at int, b Action, kinds ...Kind) {
		if needs != "" {
			return
		}
		for _, k := range kinds {
			if t := s.end(k, at, b); t >= 0 {
				start = max(start, t)
				return
			}
		}
		b.Kind = kinds[0]
		needs = fmt.Sprintf("%v of stage %d", b, at)
	}
	position := a.Span*s.stages + stage
	switch a.Kind {
	case Forward:
		if position > 0 {
			need((position-1)%s.stages, Action{Micro: a.Micro, Span: (position - 1) / s.stages}, Forward)
		}
	case Backward, BackwardInput:
		need(stage, a, Forward)
		if position < s.stages*s.spans-1 {
			need((position+1)%s.stages, Action{Micro: a.Micro, Span: (position + 1) / s.stages}, Backward,
				BackwardInput)
		}
	case BackwardWeight:
		need(stage, a, BackwardInput)
	}
	return start, needs
}
