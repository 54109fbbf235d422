package main

import (
	"fmt"
	"strings"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"

	"github.com/lamina-mesh/lamina/internal/plural"
)

// servingFlags say how a request is served.
type servingFlags struct {
	ContextPolicy   string  `help:"What happens when prompt and answer do not fit the context length: stop ends the answer; slide goes on and keeps only the first and the latest tokens; truncate_middle shortens the prompt, a chat at the borders of its turns." enum:"stop,slide,truncate_middle" default:"stop"`
	ContextLength   uint32  `help:"Context length in tokens; 0 means that of the model."`
	ContextSinks    *uint32 `help:"With slide: tokens at the beginning that are always kept. Default: 4, or the system messages of a chat if those are more."`
	ContextWindow   uint32  `help:"With slide: latest tokens that are kept; 0 means half of the rest."`
	Priority        int32   `help:"Waiting requests with a lower number are served first; -100 to 100."`
	WaitForCapacity *uint32 `help:"Seconds to wait while no pipeline can run the request. Default: about 4."`
}

// contextModes are the context policies by the names of the flag and of the HTTP API.
func contextModes() map[string]routerv1.ContextMode {
	return map[string]routerv1.ContextMode{
		"stop": routerv1.ContextMode_CONTEXT_MODE_STOP, "slide": routerv1.ContextMode_CONTEXT_MODE_SLIDE,
		"truncate_middle": routerv1.ContextMode_CONTEXT_MODE_TRUNCATE_MIDDLE,
	}
}

// policy returns the context policy that the flags describe, or nil for the router's default.
func (f *servingFlags) policy() *routerv1.ContextPolicy {
	if f.ContextPolicy == "stop" && f.ContextLength == 0 && f.ContextSinks == nil && f.ContextWindow == 0 {
		return nil
	}
	return &routerv1.ContextPolicy{
		Mode: contextModes()[f.ContextPolicy], Length: f.ContextLength, Sinks: f.ContextSinks, Window: f.ContextWindow,
	}
}

// contextUse is what a context policy has dropped, as --format json prints it.
type contextUse struct {
	Policy        string `json:"policy"`
	Length        uint32 `json:"length"`
	DroppedTokens uint32 `json:"dropped_tokens"`
	Dropped       []span `json:"dropped"`
	Messages      *span  `json:"dropped_messages,omitempty"`
}

// span is a run of positions or of messages.
type span struct {
	First uint32 `json:"first"`
	Count uint32 `json:"count"`
}

// newContextUse returns nil if there was no policy.
func newContextUse(u *routerv1.ContextUse) *contextUse {
	if u == nil {
		return nil
	}
	c := &contextUse{Length: u.GetLength(), Dropped: []span{}}
	for name, mode := range contextModes() {
		if mode == u.GetMode() {
			c.Policy = name
		}
	}
	for _, d := range u.GetDropped() {
		c.Dropped = append(c.Dropped, span{d.GetFirst(), d.GetCount()})
		c.DroppedTokens += d.GetCount()
	}
	if d := u.GetDroppedMessages(); d.GetCount() > 0 {
		c.Messages = &span{d.GetFirst(), d.GetCount()}
	}
	return c
}

// notice says in a line what the model did not see, or returns "" if it saw everything.
func (c *contextUse) notice() string {
	if c == nil || c.DroppedTokens == 0 {
		return ""
	}
	var parts []string
	for _, d := range c.Dropped {
		parts = append(parts, fmt.Sprintf("%d-%d", d.First, d.First+d.Count-1))
	}
	where := "the prompt"
	if c.Policy == "slide" {
		where = "prompt and answer"
	}
	were := "were"
	if c.DroppedTokens == 1 {
		were = "was"
	}
	text := fmt.Sprintf("context policy %s: %s of %s %s dropped (positions %s)", c.Policy,
		plural.Of(c.DroppedTokens, "token"), where, were, strings.Join(parts, ", "))
	if m := c.Messages; m != nil {
		text += fmt.Sprintf(", with messages %d-%d", m.First, m.First+m.Count-1)
	}
	return text + fmt.Sprintf("; the context length is %d", c.Length)
}
