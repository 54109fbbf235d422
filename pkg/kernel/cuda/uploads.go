package cuda

import (
	"sync"

	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// uploads copies weights to the device beside its other work: on a stream of its own and from pinned memory of its own.
// The caller's goroutine fills that memory, so that a file which is read from a disk does not hold up the device. While
// the device copies from one half, the other one is filled.
type uploads struct {
	mu     sync.Mutex // one matrix at a time
	stream driver.Stream
	half   [2][]byte
	copied [2]driver.Event
	next   int
}

// open allocates the memory. It is for the goroutine of the device.
func (u *uploads) open(d driver.Device) (err error) {
	if u.stream, err = d.NewStream(); err != nil {
		return err
	}
	for i := range u.half {
		if u.half[i], err = d.AllocPinned(stagingBytes / 2); err != nil {
			return err
		}
		if u.copied[i], err = d.NewEvent(); err != nil {
			return err
		}
		if err = d.Record(u.copied[i], u.stream); err != nil {
			return err
		}
	}
	return nil
}

// uploadWeights copies host memory to memory of the device that no operation uses yet, and sets the bytes behind it
// to zero up to a multiple of 16. It returns when the copy is done.
func (d *core) uploadWeights(dst driver.Address, src []byte) error {
	u := &d.uploads
	u.mu.Lock()
	defer u.mu.Unlock()
	await := func(i int) error {
		return d.ctx.Do(func(device driver.Device) error { return driver.WaitFor(device, u.copied[i], d.ctx.Limit()) })
	}
	if rest := len(src) % 16; rest > 0 {
		last := dst + driver.Address(len(src)-rest)
		d.ctx.Send(func(device driver.Device) error { return device.Fill(last, 0, 16, u.stream) })
	}
	for len(src) > 0 {
		i := u.next
		u.next = 1 - i
		if err := await(i); err != nil {
			return err
		}
		n, to := copy(u.half[i], src), dst
		d.ctx.Send(func(device driver.Device) error {
			if err := device.Upload(to, u.half[i][:n], u.stream); err != nil {
				return err
			}
			return device.Record(u.copied[i], u.stream)
		})
		dst, src = dst+driver.Address(n), src[n:]
	}
	if err := await(0); err != nil {
		return err
	}
	return await(1)
}
