// Package journaltest is the test suite that every journal.Journal must pass. The test of an
// implementation calls Run.
package journaltest

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/journal"
)

// Run tests a journal. open returns an empty one with the given limits.
func Run(t *testing.T, open func(t *testing.T, l journal.Limits) journal.Journal) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	roomy := journal.Limits{Bytes: 1 << 24, Age: time.Hour}
	for _, c := range []struct {
		name   string
		limits journal.Limits
		test   func(context.Context, *testing.T, journal.Journal)
	}{
		{"ReturnsRecordsInOrder", roomy, order},
		{"KeepsRequestsApart", roomy, apart},
		{"RefusesASecondBeginning", roomy, begin},
		{"RefusesAWriterThatWasOvertaken", roomy, fenced},
		{"StoresARepeatedRecordOnce", roomy, repeat},
		{"LetsOneOfManyWritersIn", roomy, race},
		{"DoesNotKnowOthers", roomy, unknown},
		{"RefusesLargeRecords", roomy, large},
		{"RefusesWhenFull", journal.Limits{Bytes: 1 << 20, Age: time.Hour}, full},
		{"ForgetsOldRecords", journal.Limits{Bytes: 1 << 20, Age: 300 * time.Millisecond}, expire},
		{"EndsWithItsContext", roomy, ends},
		{"RefusesAfterClose", roomy, closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := open(t, c.limits)
			defer func() {
				if err := j.Close(); err != nil {
					t.Error(err)
				}
			}()
			c.test(ctx, t, j)
		})
	}
}

var key = journal.Key{Tenant: "team 7.*", ID: "0123456789abcdef/>"}

func add(ctx context.Context, t *testing.T, j journal.Journal, k journal.Key, after uint64, data string) uint64 {
	t.Helper()
	seq, err := j.Append(ctx, k, after, []byte(data))
	if err != nil {
		t.Fatalf("append %q after %d: %v", data, after, err)
	}
	if seq <= after {
		t.Fatalf("append %q after %d: sequence number %d", data, after, seq)
	}
	return seq
}

func refuse(ctx context.Context, t *testing.T, j journal.Journal, after uint64, want fault.Code) {
	t.Helper()
	if _, err := j.Append(ctx, key, after, []byte("refused")); fault.CodeOf(err) != want {
		t.Errorf("append after %d: %v, want code %v", after, err, want)
	}
}

func expect(ctx context.Context, t *testing.T, j journal.Journal, k journal.Key, want ...string) []journal.Record {
	t.Helper()
	got, err := j.Read(ctx, k)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i, r := range got {
		if string(r.Data) != want[i] {
			t.Errorf("record %d is %q, want %q", i, r.Data, want[i])
		}
		if i > 0 && r.Seq <= got[i-1].Seq {
			t.Errorf("record %d has number %d after %d", i, r.Seq, got[i-1].Seq)
		}
	}
	return got
}

func order(ctx context.Context, t *testing.T, j journal.Journal) {
	seq := uint64(0)
	var want []string
	for i := range 300 {
		want = append(want, fmt.Sprintf("record %d", i))
		seq = add(ctx, t, j, key, seq, want[i])
		if i == 0 || i == 299 {
			if got := expect(ctx, t, j, key, want...); got[i].Seq != seq {
				t.Errorf("the last record has number %d, but its append returned %d", got[i].Seq, seq)
			}
		}
	}
}

func apart(ctx context.Context, t *testing.T, j journal.Journal) {
	others := []journal.Key{
		{Tenant: "", ID: key.ID}, {Tenant: key.Tenant, ID: "other"}, {Tenant: "team 7", ID: ".*" + key.ID},
	}
	a := add(ctx, t, j, key, 0, "a")
	for _, k := range others {
		if _, err := j.Read(ctx, k); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("read %+v: %v, want not found", k, err)
		}
		add(ctx, t, j, k, 0, "other")
	}
	add(ctx, t, j, key, a, "b")
	expect(ctx, t, j, key, "a", "b")
	expect(ctx, t, j, others[0], "other")
}

func begin(ctx context.Context, t *testing.T, j journal.Journal) {
	add(ctx, t, j, key, 0, "a")
	refuse(ctx, t, j, 0, fault.AlreadyExists)
	expect(ctx, t, j, key, "a")
}

func fenced(ctx context.Context, t *testing.T, j journal.Journal) {
	a := add(ctx, t, j, key, 0, "a")
	b := add(ctx, t, j, key, a, "taken")
	refuse(ctx, t, j, a, fault.Aborted)
	refuse(ctx, t, j, b+1, fault.Aborted)
	add(ctx, t, j, key, b, "c")
	refuse(ctx, t, j, b, fault.Aborted)
	expect(ctx, t, j, key, "a", "taken", "c")
}

func repeat(ctx context.Context, t *testing.T, j journal.Journal) {
	a := add(ctx, t, j, key, 0, "a")
	if again := add(ctx, t, j, key, 0, "a"); again != a {
		t.Errorf("the repeated record has number %d, want %d", again, a)
	}
	b := add(ctx, t, j, key, a, "b")
	if again := add(ctx, t, j, key, a, "b"); again != b {
		t.Errorf("the repeated record has number %d, want %d", again, b)
	}
	refuse(ctx, t, j, a, fault.Aborted) // another record at its place
	if _, err := j.Append(ctx, key, 0, []byte("a")); fault.CodeOf(err) != fault.AlreadyExists {
		t.Errorf("repeat a record that is not the last: %v", err)
	}
	add(ctx, t, j, key, b, "b") // equal bytes at another place are another record
	expect(ctx, t, j, key, "a", "b", "b")
}

func race(ctx context.Context, t *testing.T, j journal.Journal) {
	seq := add(ctx, t, j, key, 0, "a")
	for range 5 {
		var won atomic.Uint64
		var wins atomic.Int32
		var g errgroup.Group
		for i := range 8 {
			g.Go(func() error {
				got, err := j.Append(ctx, key, seq, []byte(fmt.Sprint(i)))
				switch fault.CodeOf(err) {
				case fault.Unspecified:
					won.Store(got)
					wins.Add(1)
					return nil
				case fault.Aborted:
					return nil
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if wins.Load() != 1 {
			t.Fatalf("%d of 8 writers were let in", wins.Load())
		}
		seq = won.Load()
	}
}

func unknown(ctx context.Context, t *testing.T, j journal.Journal) {
	if _, err := j.Read(ctx, key); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("read of nothing: %v", err)
	}
	refuse(ctx, t, j, 7, fault.NotFound)
}

func large(ctx context.Context, t *testing.T, j journal.Journal) {
	if _, err := j.Append(ctx, key, 0, make([]byte, journal.MaxRecord+1)); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a record that is too large: %v", err)
	}
	data := bytes.Repeat([]byte{7}, journal.MaxRecord)
	if _, err := j.Append(ctx, key, 0, data); err != nil {
		t.Fatal(err)
	}
	if got, err := j.Read(ctx, key); err != nil || len(got) != 1 || !bytes.Equal(got[0].Data, data) {
		t.Errorf("the largest record: %v", err)
	}
}

func full(ctx context.Context, t *testing.T, j journal.Journal) {
	seq := add(ctx, t, j, key, 0, "a")
	n := 1
	for ; n < 20; n++ {
		next, err := j.Append(ctx, key, seq, make([]byte, 256<<10))
		if fault.CodeOf(err) == fault.Exhausted {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seq = next
	}
	if n < 2 || n > 5 {
		t.Errorf("the journal of 1 MiB was full after %d records of 256 KiB", n-1)
	}
	if got, err := j.Read(ctx, key); err != nil || len(got) != n || string(got[0].Data) != "a" {
		t.Errorf("a full journal returns %d records, %v", len(got), err)
	}
}

func expire(ctx context.Context, t *testing.T, j journal.Journal) {
	seq := add(ctx, t, j, key, 0, "a")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := j.Read(ctx, key); fault.CodeOf(err) == fault.NotFound {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
	refuse(ctx, t, j, seq, fault.NotFound)
	for { // on a busy machine the new record may be old before it is read
		add(ctx, t, j, key, 0, "again")
		got, err := j.Read(ctx, key)
		if fault.CodeOf(err) == fault.NotFound {
			continue
		}
		if err != nil || len(got) != 1 || string(got[0].Data) != "again" {
			t.Errorf("after a record that is old: %v, %v", got, err)
		}
		return
	}
}

func ends(ctx context.Context, t *testing.T, j journal.Journal) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := j.Append(ctx, key, 0, nil); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("append with an ended context: %v", err)
	}
	if _, err := j.Read(ctx, key); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("read with an ended context: %v", err)
	}
}

func closed(ctx context.Context, t *testing.T, j journal.Journal) {
	add(ctx, t, j, key, 0, "a")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	refuse(ctx, t, j, 0, fault.Unavailable)
	if _, err := j.Read(ctx, key); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("read after close: %v", err)
	}
}
