package main

import (
	"strings"
	"testing"
	"time"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

// A run whose remaining time is not known, since nobody has watched it, is not about to end.
func TestRunLine_SaysWhatIsLeftIfItIsKnown(t *testing.T) {
	r := &trainerv1.Run{Name: "r", State: trainerv1.RunState_RUN_STATE_RUNNING, Step: 5, Steps: 10}
	if line := runLine(r, 0, 0); strings.Contains(line, "left") {
		t.Errorf("without a time: %q", line)
	}
	if line := runLine(r, 0, 10*time.Second); !strings.Contains(line, "10s left") {
		t.Errorf("5 steps in 10 s: %q", line)
	}
	if r.SecondsLeft = 7; !strings.Contains(runLine(r, 0, 0), "7s left") {
		t.Errorf("as the trainer knows: %q", runLine(r, 0, 0))
	}
}
