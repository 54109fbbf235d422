package cuda

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// Lists go round the ring several times, and whoever reads one on the stream finds its own. The twin copies from pinned
// memory late, so a half that is written again too early shows.
func TestWorker_ListsGoRoundTheRing(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	d, err := openDevice(twin.New(twin.Config{Devices: 1, Machine: twin.Simulated}), Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := d.newScope()
	const lists, size = 20, 700 << 10
	var copies []driver.Address
	for i := range lists {
		to := s.alloc(size, workspaceUse)
		copies = append(copies, to)
		list := bytes.Repeat([]byte{byte(i + 1)}, size)
		d.send(func(w *worker) error {
			a, err := w.stage(list)
			if err != nil {
				return err
			}
			return w.Copy(to, a, size, w.stream)
		})
	}
	got := make([]byte, size)
	for i, a := range copies {
		d.do(func(w *worker) error { return w.download(got, a) })
		if !bytes.Equal(got, bytes.Repeat([]byte{byte(i + 1)}, size)) {
			t.Fatalf("list %d is another one: it begins with %d", i, got[0])
		}
	}
	runtime.KeepAlive(s)
	if err := d.ctx.Do(func(driver.Device) error {
		_, err := d.worker.stage(make([]byte, stagingBytes))
		return err
	}); err == nil {
		t.Error("a list as long as the ring is staged")
	}
	if err := d.ctx.Close(); err != nil {
		t.Error(err)
	}
}
