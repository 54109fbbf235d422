// Package leak tells whether tests have left goroutines behind. What ends by itself gets a minute to do so, because
// a machine that runs other tests as well may take that long. It is for tests only.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long goroutines may take to end.
const patience = time.Minute

// Check fails a test if goroutines are left that do not end. A test defers it before anything else, so that it runs
// last. It says nothing about a test that has failed already.
func Check(t testing.TB) {
	t.Helper()
	if t.Failed() {
		return
	}
	if err := find(patience); err != nil {
		t.Error(err)
	}
}

// Main runs the tests of a package and exits. If all of them pass, it fails if goroutines are left that do not end.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := find(patience); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// find returns an error that lists the goroutines that are left after a limit, and nil as soon as there are none.
func find(limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		err := goleak.Find() // polls for half a second itself
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
