package shard

// This test is internal because a peer cannot choose when a call breaks.

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sync/semaphore"

	eventv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/event/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/schedule"
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

// An attempt may be aborted while it waits for room in the queue of a call. What it has not queued is not on its way:
// the next attempt, which goes on with the call, does not wait for it.
func TestDirect_WhatAnAbortedAttemptHasNotQueuedIsNotOnItsWay(t *testing.T) {
	r := &trainRun{ctx: t.Context(), open: &shardv1.TrainOpen{Run: "run"}}
	r.members = members{shares: []share{{place: place{chain: "a"}}, {replica: 1, place: place{chain: "b"}}}}
	l := &link{queue: make(chan *eventv1.Gradient), window: semaphore.NewWeighted(directWindow)}
	d := newDirect(r)
	d.links["b"] = l
	ctx, cancel := context.WithCancel(t.Context())
	d.ctx = ctx
	done := make(chan error, 1)
	go func() { done <- d.send(&mailbox{run: r}, 1, "part", schedule.Node{Hi: 1}, "", make([]byte, 8)) }()
	for l.window.TryAcquire(directWindow) { // until the send has its part of it
		l.window.Release(directWindow)
		runtime.Gosched()
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("the send ends with %v", err)
	}
	if !l.window.TryAcquire(directWindow) {
		t.Error("the window is not free")
	}
}
