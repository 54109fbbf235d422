package twin_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/internal/leak"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/drivertest"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver/twin"
)

// faulty is a device of a twin with a stream, an event, memory and a kernel.
type faulty struct {
	*driver.Context
	faults *twin.Faults
	stream driver.Stream
	event  driver.Event
	memory driver.Address
	scale  driver.Function
}

// openFaulty opens a device whose work may take up to limit.
func openFaulty(t *testing.T, limit time.Duration) *faulty {
	t.Helper()
	f := &faulty{faults: &twin.Faults{}}
	var err error
	f.Context, err = driver.Start(twin.New(twin.Config{Devices: 1, Machine: newMemory, Faults: f.faults}), 0, limit)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Do(func(d driver.Device) (err error) {
		if f.stream, err = d.NewStream(); err != nil {
			return err
		}
		if f.event, err = d.NewEvent(); err != nil {
			return err
		}
		if f.memory, err = d.Alloc(64); err != nil {
			return err
		}
		m, err := d.Load([]byte(drivertest.Scale))
		if err != nil {
			return err
		}
		f.scale, err = d.Function(m, "scale", 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// launch puts a kernel on the stream.
func (f *faulty) launch(d driver.Device) error {
	return d.Launch(f.scale, driver.Launch{Grid: driver.Dim{X: 1, Y: 1, Z: 1}, Block: driver.Dim{X: 16, Y: 1, Z: 1}},
		f.stream, f.memory, float32(2), uint32(16))
}

// wait waits for the stream.
func (f *faulty) wait(d driver.Device) error { return driver.Wait(d, f.stream, f.event, f.Limit()) }

// lost fails unless the device is lost for a reason of type E, and runs nothing more. It returns the reason.
func lost[E error](t *testing.T, f *faulty, err error) (reason E) {
	t.Helper()
	gone := (*driver.LostError)(nil)
	if !errors.As(err, &gone) || !errors.As(err, &reason) {
		t.Fatalf("the error is %v, want that of a lost device of type %T", err, reason)
	}
	select {
	case <-f.Lost():
	default:
		t.Fatal("the device does not say that it is lost")
	}
	ran := false
	f.Send(func(driver.Device) error { ran = true; return nil })
	if again := f.Do(func(driver.Device) error { ran = true; return nil }); !errors.Is(again, f.Err()) || ran {
		t.Errorf("a lost device runs a function (%v) and returns %v, want %v", ran, again, f.Err())
	}
	return reason
}

// A failure of work comes with the call that waits for it. After one that kills the context, nothing runs.
func TestContext_AFailureOfAKernelIsTheLast(t *testing.T) {
	for name, code := range map[string]int{"CUDA_ERROR_ILLEGAL_ADDRESS": 700, "CUDA_ERROR_LAUNCH_FAILED": 719,
		"CUDA_ERROR_ECC_UNCORRECTABLE": 214} {
		t.Cleanup(func() { leak.Check(t) })
		f := openFaulty(t, 0)
		f.faults.FailNext(name)
		f.Send(f.launch)
		err := f.Do(f.wait)
		if call := lost[*driver.CallError](t, f, err); call.Code != code || call.Name != name {
			t.Errorf("the reason is %v, want %s", call, name)
		}
		if err := f.Close(); err == nil {
			t.Errorf("%s: the device closes as if nothing had failed", name)
		}
		if err := f.Do(f.wait); !errors.Is(err, driver.ErrClosed) {
			t.Errorf("work for a closed device: %v", err)
		}
	}
}

// An error of Do that leaves the context whole is nothing but that; one of Send has no other place to go.
func TestContext_AnErrorThatLeavesTheDeviceWhole(t *testing.T) {
	t.Cleanup(func() { leak.Check(t) })
	f := openFaulty(t, 0)
	err := f.Do(func(d driver.Device) error { return d.Free(f.memory + 4) })
	if call := (*driver.CallError)(nil); !errors.As(err, &call) || call.Code != 1 || f.Err() != nil {
		t.Errorf("freeing what is no allocation: %v, the device has %v", err, f.Err())
	}
	if err := f.Do(f.wait); err != nil {
		t.Errorf("after it: %v", err)
	}
	broken := errors.New("broken")
	f.Send(func(driver.Device) error { return broken })
	if err := f.Do(f.wait); !errors.Is(err, broken) || f.Err() == nil {
		t.Errorf("after a failure of Send: %v, the device has %v", err, f.Err())
	}
	if err := f.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// A stream that stops is found by the wait for it, whose goroutine goes on.
func TestContext_AStreamThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFaulty(t, time.Second)
		f.faults.Hang()
		f.Send(f.launch)
		start := time.Now()
		err := f.Do(f.wait)
		if hung := lost[*driver.HungError](t, f, err); hung.Limit != time.Second {
			t.Errorf("the reason is %v", hung)
		}
		if took := time.Since(start); took < time.Second || took > 2*time.Second {
			t.Errorf("found after %v, want 1s", took)
		}
		if err := f.Close(); !errors.Is(err, f.Err()) {
			t.Errorf("close: %v", err)
		}
	})
}

// A call that does not return is found by whoever waits for the goroutine, or for room in its queue.
func TestContext_ACallThatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := openFaulty(t, time.Second)
		f.faults.Block()
		for range 2 { // the second one waits in the queue
			f.Send(f.wait)
		}
		full := make(chan struct{})
		go func() {
			defer close(full)
			for range 300 { // more than the queue takes
				f.Send(f.launch)
			}
		}()
		err := f.Do(f.launch)
		<-full
		gone, hung := (*driver.LostError)(nil), (*driver.HungError)(nil)
		if !errors.As(err, &gone) || !errors.As(err, &hung) {
			t.Errorf("the error is %v", err)
		}
		if err := f.Close(); !errors.Is(err, f.Err()) {
			t.Errorf("close: %v", err)
		}
		f.faults.Release() // so that the goroutine ends
	})
}

// A device that counts its work and goes on with it may take any time.
func TestWaitFor_ASlowDeviceDoesNotHang(t *testing.T) {
	const polls = 5000
	slow := &slowDevice{left: polls}
	if err := driver.WaitFor(slow, 0, 0); err != nil {
		t.Errorf("a device that goes on: %v", err)
	}
	slow.left, slow.stops = polls, true
	if hung := (*driver.HungError)(nil); !errors.As(driver.WaitFor(slow, 0, 0), &hung) {
		t.Error("a device that has stopped does not hang")
	}
}

// slowDevice is done after some polls. It counts them, unless it has stopped.
type slowDevice struct {
	driver.Device
	left  int
	stops bool
	count uint64
}

func (d *slowDevice) Done(driver.Event) (bool, error) {
	if d.left--; !d.stops {
		d.count++
	}
	return d.left == 0, nil
}

func (d *slowDevice) Progress() uint64 { return d.count }
