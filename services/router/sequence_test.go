package router

// These tests are internal because a client cannot choose the moment at which a pipeline and a reader meet.

import (
	"testing"

	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	"github.com/lamina-mesh/lamina/pkg/sched"
)

// paused applies events to a sequence that was paused or not, as its scheduler does.
func paused(was bool, events []sched.Event) bool {
	for _, e := range events {
		switch e.(type) {
		case sched.Pause:
			was = true
		case sched.Resume:
			was = false
		}
	}
	return was
}

// A reader may take everything between the pipeline's look at the room and its note that the reader is to say when
// there is room. Nobody would end the pause then.
func TestSequence_ReaderThatHasTakenEverything_IsNotPaused(t *testing.T) {
	for _, was := range []bool{false, true} { // by an earlier token
		seq := newSequence(&sequence{})
		seq.paused.Store(was)
		if paused(was, seq.pause()) || seq.paused.Load() {
			t.Errorf("the sequence is paused, and its reader has nothing to take; it was paused before: %v", was)
		}
	}
	seq := newSequence(&sequence{})
	for range outLen/2 + 1 {
		seq.out <- result{}
	}
	if !paused(false, seq.pause()) || !seq.paused.Load() {
		t.Error("the sequence is not paused, and its reader has a lot to take")
	}
	p := &pipeline{ctx: t.Context(), events: make(chan event, 1)}
	for range outLen/4 + 1 {
		<-seq.out
		seq.took(p)
	}
	if len(p.events) != 1 || paused(true, []sched.Event{(<-p.events).Event}) {
		t.Error("the reader does not say that there is room")
	}
}

// A reader notes that there is room, and says so later. Tokens in flight may have filled the room in between: what it
// says then must not let the sequence go on for as long as nothing is taken.
func TestRunner_LateWordOfRoom_PausesAgain(t *testing.T) {
	p := &pipeline{ctx: t.Context(), events: make(chan event, 1)}
	seq := newSequence(&sequence{draft: true})
	r := &runner{p: p, sequences: map[sched.ID]*sequence{seq.name(): seq}}
	token := func() {
		r.emit(sched.Emit{ID: seq.name(), Data: &samplerv1.Token{}})
	}
	state := false
	for len(seq.out) <= outLen/2 {
		token()
	}
	if state, r.events = paused(state, r.events), nil; !state {
		t.Fatal("half of the room is used up, and the sequence goes on")
	}
	state = paused(state, []sched.Event{sched.Resume{ID: seq.name()}}) // the late word
	token()
	if state = paused(state, r.events); !state {
		t.Errorf("%d of %d results wait, and the sequence goes on", len(seq.out), outLen)
	}
}
