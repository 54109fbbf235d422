package openai

import (
	"bytes"
	"encoding/json"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// serving holds fields beyond OpenAI's that say how a request is served. priority is vLLM's.
type serving struct {
	ContextPolicy   json.RawMessage `json:"context_policy"`
	Priority        int32           `json:"priority"`
	WaitForCapacity *uint32         `json:"wait_for_capacity"` // seconds
}

// policyNames are the context policies as requests and responses name them.
func policyNames() map[routerv1.ContextMode]string {
	return map[routerv1.ContextMode]string{
		routerv1.ContextMode_CONTEXT_MODE_STOP: "stop", routerv1.ContextMode_CONTEXT_MODE_SLIDE: "slide",
		routerv1.ContextMode_CONTEXT_MODE_TRUNCATE_MIDDLE: "truncate_middle",
	}
}

// contextPolicy reads the field context_policy: the name of a policy, or an object with its parameters.
// It returns nil if there is none.
func (s *serving) contextPolicy() (*routerv1.ContextPolicy, error) {
	const field = "context_policy"
	if !given(s.ContextPolicy) {
		return nil, nil
	}
	var p struct {
		Type   string  `json:"type"`
		Length uint32  `json:"length"`
		Sinks  *uint32 `json:"sinks"`
		Window uint32  `json:"window"`
	}
	if json.Unmarshal(s.ContextPolicy, &p.Type) != nil {
		d := json.NewDecoder(bytes.NewReader(s.ContextPolicy))
		d.DisallowUnknownFields()
		if err := d.Decode(&p); err != nil {
			return nil, fault.Field(field, "want the name of a policy, or an object with type and the whole numbers "+
				"length, sinks and window: %v", err)
		}
	}
	for mode, name := range policyNames() {
		if name == p.Type {
			return &routerv1.ContextPolicy{Mode: mode, Length: p.Length, Sinks: p.Sinks, Window: p.Window}, nil
		}
	}
	return nil, fault.Field(field, "unknown policy %q: want stop, slide or truncate_middle", p.Type)
}

// contextUse is how a context policy was applied to a choice.
type contextUse struct {
	Policy        string       `json:"policy"`
	Length        uint32       `json:"length"`
	Sinks         *uint32      `json:"sinks,omitempty"`
	Window        *uint32      `json:"window,omitempty"`
	Recomputed    bool         `json:"recomputed"`
	DroppedTokens uint32       `json:"dropped_tokens"`
	Dropped       []droppedRun `json:"dropped"`
	Messages      *droppedRun  `json:"dropped_messages,omitempty"`
}

// droppedRun is a run of positions or of messages.
type droppedRun struct {
	First uint32 `json:"first"`
	Count uint32 `json:"count"`
}

func toRun(d *routerv1.Dropped) droppedRun { return droppedRun{d.GetFirst(), d.GetCount()} }

// toContext formats a report of the backend.
func toContext(u *routerv1.ContextUse) *contextUse {
	out := &contextUse{
		Policy:     policyNames()[u.GetMode()],
		Length:     u.GetLength(),
		Recomputed: u.GetRecomputed(),
		Dropped:    []droppedRun{},
	}
	if u.GetMode() == routerv1.ContextMode_CONTEXT_MODE_SLIDE {
		sinks, window := u.GetSinks(), u.GetWindow()
		out.Sinks, out.Window = &sinks, &window
	}
	for _, d := range u.GetDropped() {
		out.Dropped = append(out.Dropped, toRun(d))
		out.DroppedTokens += d.GetCount()
	}
	if d := u.GetDroppedMessages(); d != nil {
		run := toRun(d)
		out.Messages = &run
	}
	return out
}

// contextOf returns what an event says about the context, for the field context of its choice: the whole
// report at the beginning and at the end, and with a token before which the window slid all that is
// dropped by then. It returns nil if there is nothing to say.
func contextOf(e event) any {
	switch {
	case e.started.GetContext() != nil:
		return toContext(e.started.GetContext())
	case e.finished.GetContext() != nil:
		return toContext(e.finished.GetContext())
	case e.token.GetDropped() != nil:
		return map[string]any{
			"dropped_tokens": e.token.GetDropped().GetCount(), "dropped": []droppedRun{toRun(e.token.GetDropped())},
		}
	}
	return nil
}

// serve copies the fields into a request for the backend.
func (s *serving) serve(policy **routerv1.ContextPolicy, priority *int32, wait **uint32) (err error) {
	*priority, *wait = s.Priority, s.WaitForCapacity
	*policy, err = s.contextPolicy()
	return err
}
