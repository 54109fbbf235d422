package checkpoint_test

import (
	"testing"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func mustTake(t *testing.T, fs checkpoint.FS) *checkpoint.Store {
	t.Helper()
	s, err := checkpoint.New(fs, "run/checkpoints").Take()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// T9: a trainer is suspended before any of its operations, while another one takes its run up and commits the same
// step and a later one. When the first trainer wakes up it changes nothing any more.
func TestStore_ADeposedHolderChangesNothing(t *testing.T) {
	calm := newCrashFS()
	s := mustTake(t, calm)
	mustSave(t, s, 4, nil)
	from := calm.ops
	act := func(s *checkpoint.Store) (committed bool, err error) {
		if _, err := save(s, 5, nil); err != nil {
			return false, err
		}
		if err := s.Rotate(checkpoint.Keep{Last: 1}); err != nil {
			return true, err
		}
		return true, s.Remove(5)
	}
	if _, err := act(s); err != nil {
		t.Fatal(err)
	}
	total, before, after := calm.ops, 0, 0
	for at := from + 1; at <= total; at++ {
		fs := newCrashFS()
		old := mustTake(t, fs)
		mustSave(t, old, 4, nil)
		taken := uint64(0) // the checkpoint that the new holder finds
		fs.before = func(op int) {
			if op != at {
				return
			}
			fs.before = nil
			next := mustTake(t, fs)
			taken = newestReadable(t, next)
			mustSave(t, next, 5, nil)
			mustSave(t, next, 6, nil)
			if err := next.Held(); err != nil {
				t.Fatal(err)
			}
		}
		committed, err := act(old)
		if committed && taken == 5 {
			before++
		} else {
			after++
		}
		if err == nil && !committed || fault.CodeOf(old.Held()) != fault.Aborted {
			t.Errorf("suspended at operation %d of %d (%s): went on with %v, held %v", at, total, fs.log[at-1], err, old.Held())
		}
		if committed && taken == 4 {
			t.Errorf("suspended at operation %d (%s): both have committed step 5", at, fs.log[at-1])
		}
		all := checkpoint.New(fs, "run/checkpoints")
		for _, step := range []uint64{5, 6} {
			c, err := all.Open(step)
			if err == nil {
				err = readAll(c)
			}
			if err != nil {
				t.Errorf("suspended at operation %d (%s): checkpoint %d of the new holder: %v", at, fs.log[at-1], step, err)
			}
		}
	}
	t.Logf("suspended at %d operations: %d after the commit, %d before", total-from, before, after)
	if before == 0 || after == 0 {
		t.Error("not all cases were met")
	}
}

func TestStore_TheLaterOfTwoClaimsCounts(t *testing.T) {
	dir := checkpoint.Dir(t.TempDir())
	first, second := mustTake(t, dir), mustTake(t, dir)
	if err := first.Begin(1); err == nil {
		t.Error("an ended claim begins a checkpoint")
	}
	mustSave(t, second, 1, nil)
	if fault.CodeOf(first.Held()) != fault.Aborted || second.Held() != nil {
		t.Errorf("held: %v and %v", first.Held(), second.Held())
	}
	third := mustTake(t, dir)
	if got := newestReadable(t, third); got != 1 {
		t.Errorf("found step %d", got)
	}
	for _, name := range []string{"", ".claim-", ".claim-01", ".claim--1", ".claim-1/..", "claim-1"} {
		if checkpoint.IsClaim(name) {
			t.Errorf("%q is a claim", name)
		}
	}
}
