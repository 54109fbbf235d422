package cuda

import (
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// lookLimit bounds the time for which Device waits for a device that is busy.
const lookLimit = 100 * time.Millisecond

// saw keeps what the driver says.
func (d *core) saw(free, total int64, u driver.Usage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = kernel.Device{Total: total, Free: free, Utilisation: u.Utilisation, Celsius: u.Celsius, Watts: u.Watts}
}

// Device describes the device. What the driver says is from before if the device is busy for longer than lookLimit.
func (d *core) Device() kernel.Device {
	d.look()
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.seen
	out.Name, out.Model, out.Architecture = d.name, d.properties.Name, d.properties.SM()
	out.Limit, out.Reserved = d.limit, d.reserved
	out.Weights, out.KV, out.Workspace = d.used[weightsUse], d.used[kvUse], d.used[workspaceUse]+d.used[setUse]
	return out
}

// look asks the driver, unless a function that does so waits in the queue already.
func (d *core) look() {
	d.mu.Lock()
	asked := d.asked
	d.asked = true
	d.mu.Unlock()
	if asked {
		return
	}
	answered := make(chan struct{})
	sent := d.ctx.Err() == nil && d.ctx.TrySend(func(device driver.Device) error {
		defer close(answered)
		free, total, err := device.MemoryInfo()
		if err == nil {
			d.saw(free, total, device.Usage())
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.asked = false
		return err
	})
	if !sent {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.asked = false
		return
	}
	timer := time.NewTimer(lookLimit)
	defer timer.Stop()
	select {
	case <-answered:
	case <-d.ctx.Lost():
	case <-timer.C:
	}
}

// Lost returns a channel that is closed when the device is lost.
func (d *core) Lost() <-chan struct{} { return d.ctx.Lost() }

// LostErr returns why the device is lost, a *driver.LostError, or nil.
func (d *core) LostErr() error { return d.ctx.Err() }

// PackedBytes returns the bytes that Pack of a matrix allocates.
func (s *Set) PackedBytes(w *kernel.Matrix[float32]) int64 {
	switch {
	case w.Raw == nil || w.Packed != nil:
		return 0
	case s.multiplied(w, w.Plain):
		return (int64(len(w.Raw)) + 15) &^ 15
	}
	return 4 * int64(w.Rows) * int64(w.Cols)
}
