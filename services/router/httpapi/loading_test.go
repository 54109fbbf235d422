package httpapi

// This test is internal because it sets the time.

import (
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

func TestSilentWait_EndsWithTheTimeToAskAgain(t *testing.T) {
	var w SilentWait
	start := time.Unix(1000, 0)
	// 60 bytes were there before: the other 20 have taken the whole time.
	m := &routerv1.ModelLoading{Model: "chat", DoneBytes: 60, TotalBytes: 100}
	for _, at := range []time.Duration{0, time.Second, silentLimit - 1} {
		if err := w.loading(m, start.Add(at)); err != nil {
			t.Fatalf("after %v: %v", at, err)
		}
	}
	m.DoneBytes = 80
	err, _ := w.loading(m, start.Add(silentLimit)).(*fault.Error)
	if err == nil || err.Code != fault.Unavailable || err.RetryAfter.Round(time.Millisecond) != silentLimit {
		t.Errorf("after %v: %v, want Unavailable and to ask again after %v", silentLimit, err, silentLimit)
	}
}
