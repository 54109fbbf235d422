package cputime_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/internal/cputime"
)

func TestProcessAndThread_CountWork(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	process, thread, began := cputime.Process(), cputime.Thread(), time.Now()
	x := 1.0
	for cputime.Thread()-thread < 20*time.Millisecond {
		if x *= 1.0000001; time.Since(began) > time.Minute {
			t.Fatal("a minute of work does not count as 20 ms of processor time")
		}
	}
	const rounded = 10 * time.Microsecond // each of the times that are summed up and compared is cut to a microsecond
	if used := cputime.Process() - process; used < 20*time.Millisecond-rounded {
		t.Errorf("the process used %v, less than its thread", used)
	}
}
