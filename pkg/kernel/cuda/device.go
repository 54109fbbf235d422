package cuda

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// Config says which device a set is on, and how.
type Config struct {
	Number int           // of the device
	KV     kernel.KVType // of the caches
	Memory int64         // bytes that may be allocated; 0 means what is free, less a reserve
	Limit  time.Duration // of the device's work, as in driver.Start
	// NoGraphs launches every kernel of a step by itself, as if the device had no graphs. The bits are the same.
	NoGraphs bool
	// FromText has the driver compile the text of the kernels also where there is machine code for the device.
	FromText bool
}

// openLimit bounds the time for loading the kernels, which a driver without a cache compiles first.
const openLimit = 10 * time.Minute

// reserve is the part of a device's free memory that is left to the driver: compiled kernels, their stacks, graphs.
const reserve = 1.0 / 32

// device is an open device as a set sees it.
type device struct {
	*core
	// rec takes the operations in place of the queue, for a graph; nil in all sets but those that Steps.Run hands out.
	rec *recording
}

// core is an open device. All sets on it share it.
type core struct {
	name       string // such as cuda:0
	properties driver.Properties
	ctx        *driver.Context
	worker     *worker // for functions that ctx runs, and for nobody else
	kernels    map[string]*Kernel
	freed      chan struct{} // has room for one: memory was freed since an allocation last looked

	mu       sync.Mutex
	ranges   []extent // allocations by address
	used     [uses]int64
	reserved int64
	limit    int64
	seen     kernel.Device // what the driver said last
	asked    bool          // a function that asks it is in the queue

	uploads uploads
	tables  tables

	workMu    sync.Mutex
	workBytes int64  // of the workspace
	workScope *scope // that it is in
	workMade  int    // how often it has grown

	noGraphs bool
	captures atomic.Int64 // graphs that were made
	plays    atomic.Int64 // steps that were launched as graphs
}

// openDevice opens a device and loads the kernels.
func openDevice(d driver.Driver, c Config) (*device, error) {
	ctx, err := driver.Start(d, c.Number, c.Limit)
	if err != nil {
		return nil, err
	}
	out := &device{core: &core{name: fmt.Sprintf("cuda:%d", c.Number), ctx: ctx, kernels: map[string]*Kernel{},
		freed: make(chan struct{}, 1), noGraphs: c.NoGraphs}}
	all := Kernels()
	for i := range all {
		out.kernels[all[i].Name] = &all[i]
	}
	err = ctx.DoWithin(openLimit, func(d driver.Device) (err error) {
		out.properties = d.Properties()
		out.worker, err = newWorker(d, all, ctx.Limit(), c.FromText)
		if err != nil {
			return err
		}
		if err = out.uploads.open(d); err != nil {
			return err
		}
		free, total, err := d.MemoryInfo()
		out.saw(free, total, d.Usage())
		if out.limit = free - int64(float64(free)*reserve); c.Memory > 0 {
			out.limit = min(out.limit, c.Memory)
		}
		return err
	})
	if err != nil {
		_ = ctx.Close() // the error of opening says more
		return nil, fmt.Errorf("open %s: %w", out.name, err)
	}
	return out, nil
}

// do runs f on the device's goroutine and panics with its error: operations have no other way to report that the
// device has failed, and whoever runs them recovers.
func (c *core) do(f func(w *worker) error) {
	if err := c.ctx.Do(func(driver.Device) error { return f(c.worker) }); err != nil {
		panic(fmt.Errorf("%s: %w", c.name, err))
	}
}

// send is do without waiting. An error comes with a later call.
func (c *core) send(f func(w *worker) error) {
	c.ctx.Send(func(driver.Device) error { return f(c.worker) })
}

// do is that of core. While operations are recorded nothing runs, so none has a result.
func (d *device) do(f func(w *worker) error) {
	d.rec.refuse("a copy between host and device")
	d.core.do(f)
}

// send puts an operation into the queue, or records it.
func (d *device) send(f func(w *worker) error) {
	if d.rec != nil {
		d.rec.list = append(d.rec.list, f)
		return
	}
	d.core.send(f)
}

// need panics unless there is a kernel.
func (d *device) need(operation, name string) *Kernel {
	k := d.kernels[name]
	if k == nil {
		panic(&kernel.MissingError{Device: d.name, Operation: operation})
	}
	return k
}

// launch puts a kernel on the stream. It panics if the arguments do not fit the kernel's parameters.
func (d *device) launch(k *Kernel, grid driver.Dim, shared int, args ...any) {
	checkArgs(k, args)
	d.send(func(w *worker) error { return w.launch(k, grid, shared, args...) })
}

// checkArgs panics if arguments do not fit a kernel's parameters.
func checkArgs(k *Kernel, args []any) {
	if len(args) != len(k.Params) {
		panic(fmt.Sprintf("launch %s: %d arguments, want %d", k.Name, len(args), len(k.Params)))
	}
	for i, a := range args {
		var t ParamType
		switch a.(type) {
		case driver.Address:
			t = Pointer
		case uint32:
			t = Uint32
		case float32:
			t = Float32
		}
		if t != k.Params[i].Type {
			panic(fmt.Sprintf("launch %s: argument %s is %T", k.Name, k.Params[i].Name, a))
		}
	}
}

// each launches a kernel with a thread for each of n elements.
func (d *device) each(operation, name string, n int, args ...any) {
	if k := d.need(operation, name); n > 0 {
		d.launch(k, driver.Dim{X: blocks(n, k.Threads), Y: 1, Z: 1}, 0, args...)
	}
}

// blocks returns how many blocks of size threads have n threads.
func blocks(n, threads int) uint32 { return uint32((n + threads - 1) / threads) }
