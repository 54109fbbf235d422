package httpapi

import (
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// silentLimit bounds the wait for a model whose client hears nothing meanwhile. Proxies often end a response that has
// not begun after a minute.
const silentLimit = 50 * time.Second

// SilentWait ends a request whose answer is not streamed, and which has waited for long for its model to be loaded. The
// model goes on loading. The zero value is ready; it is safe for concurrent use.
type SilentWait struct {
	mu       sync.Mutex
	began    time.Time
	progress deploy.Progress
}

// Loading takes a report of the loading. Once the wait is too long it returns the error that ends the request, which
// says when to try again.
func (w *SilentWait) Loading(m *routerv1.ModelLoading) error { return w.loading(m, time.Now()) }

func (w *SilentWait) loading(m *routerv1.ModelLoading, now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.began.IsZero() {
		w.began = now
	}
	w.progress.Report(m.GetDoneBytes(), m.GetTotalBytes(), now)
	if now.Sub(w.began) < silentLimit {
		return nil
	}
	return fault.New(fault.Unavailable, "load model %s: %d of %d bytes are loaded; ask again, or for a stream: %s",
		m.GetModel(), m.GetDoneBytes(), m.GetTotalBytes(), m.GetState()).
		After(w.progress.Rest()).Because("MODEL_LOADING")
}
