package shard

// This test is internal because a peer cannot choose when a call breaks.

import (
	"context"
	"errors"
	"testing"
)

// A call of an attempt that is over may break while the next attempt begins. The next attempt makes a call of its own.
func TestDirect_AnOldCallThatBreaksEndsNoNewAttempt(t *testing.T) {
	for _, n := range []uint32{0, 1} {
		r := &trainRun{ctx: t.Context()}
		d := newDirect(r)
		all := members{shares: []share{{place: place{chain: "a"}}, {replica: 1, place: place{chain: "b"}}}}
		l := &link{stop: make(chan struct{}), done: make(chan struct{}), cancel: func() {}}
		close(l.done)
		d.links["b"] = l
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		d.begin(ctx, cancel, attempt{step: 1, n: n}, all, nil)
		d.lost(l, "b", errors.New("the connection is reset"))
		// The first attempt at a step goes on with the calls that there are.
		if ended := ctx.Err() != nil; ended != (n == 0) {
			t.Errorf("attempt %d is ended: %v, %v", n, ended, context.Cause(ctx))
		}
	}
}
