package twin

import "github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"

// deep bounds the work that waits on a stream; a longer queue begins to run.
const deep = 1024

// work is one piece of work of a stream. An event that it waits for or marks stands in place of run.
type work struct {
	run          func() error
	await, marks *event
	mark         int // count of marks of the event that it awaits or makes
}

// stream is a queue of work.
type stream struct {
	queue    []work
	captured []work
	capture  bool
}

// event counts how often it was put on a stream, and the last time that it was reached.
type event struct{ recorded, reached int }

// put puts work on a stream.
func (d *Device) put(call string, s driver.Stream, run func() error) error {
	return d.add(call, s, work{run: run})
}

func (d *Device) add(call string, s driver.Stream, w work) error {
	if d.failed != nil {
		return d.failed
	}
	q, ok := d.streams[s]
	if !ok {
		return fail(call, "CUDA_ERROR_INVALID_HANDLE", "no such stream")
	}
	if q.capture {
		q.captured = append(q.captured, w)
		return nil
	}
	if q.queue = append(q.queue, w); len(q.queue) > deep {
		d.step()
	}
	return nil
}

// capturing reports whether a stream is being captured.
func (d *Device) capturing() bool {
	for _, s := range d.streams {
		if s.capture {
			return true
		}
	}
	return false
}

// step runs the first piece of work of every stream, unless it has to wait. It reports whether any ran.
func (d *Device) step() bool {
	if d.faults.hangs() {
		return false
	}
	ran := false
	for _, s := range d.streams {
		if len(s.queue) == 0 {
			continue
		}
		w := s.queue[0]
		if w.await != nil && w.await.reached < w.mark {
			continue
		}
		s.queue, ran = s.queue[1:], true
		d.progress.Add(1)
		switch {
		case w.marks != nil:
			w.marks.reached = max(w.marks.reached, w.mark)
		case w.run != nil && d.failed == nil:
			if d.failed = w.run(); d.failed != nil && !driver.Sticky(d.failed) {
				d.failed = fail("cuStreamQuery", "CUDA_ERROR_ILLEGAL_ADDRESS", "%v", d.failed)
			}
		}
	}
	return ran
}

// finish runs all work.
func (d *Device) finish(call string) error {
	if d.capturing() {
		return fail(call, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "a stream is being captured")
	}
	d.faults.pass()
	for d.step() {
	}
	if d.failed != nil {
		return d.failed
	}
	for _, s := range d.streams {
		if len(s.queue) > 0 {
			return fail(call, "CUDA_ERROR_LAUNCH_FAILED", "a stream waits for an event that never comes")
		}
	}
	return nil
}

// NewStream makes a stream.
func (d *Device) NewStream() (driver.Stream, error) {
	s := driver.Stream(d.handle())
	d.streams[s] = &stream{}
	return s, d.failed
}

// FreeStream finishes all work and forgets a stream.
func (d *Device) FreeStream(s driver.Stream) error {
	if d.streams[s] == nil {
		return fail("cuStreamDestroy", "CUDA_ERROR_INVALID_HANDLE", "no such stream")
	}
	err := d.finish("cuStreamDestroy")
	delete(d.streams, s)
	return err
}

// NewEvent makes an event.
func (d *Device) NewEvent() (driver.Event, error) {
	e := driver.Event(d.handle())
	d.events[e] = &event{}
	return e, d.failed
}

// Record puts the event on a stream.
func (d *Device) Record(e driver.Event, s driver.Stream) error {
	ev, ok := d.events[e]
	if !ok {
		return fail("cuEventRecord", "CUDA_ERROR_INVALID_HANDLE", "no such event")
	}
	if q := d.streams[s]; q != nil && q.capture {
		return fail("cuEventRecord", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "the stream is being captured")
	}
	ev.recorded++
	return d.add("cuEventRecord", s, work{marks: ev, mark: ev.recorded})
}

// Done runs a piece of work of every stream and reports whether the event was reached before it did.
func (d *Device) Done(e driver.Event) (bool, error) {
	ev, ok := d.events[e]
	if !ok {
		return false, fail("cuEventQuery", "CUDA_ERROR_INVALID_HANDLE", "no such event")
	}
	d.faults.pass()
	if ev.reached == ev.recorded || d.failed != nil {
		return d.failed == nil, d.failed
	}
	if !d.step() && !d.faults.hangs() {
		return false, fail("cuEventQuery", "CUDA_ERROR_LAUNCH_FAILED", "the streams wait for an event that never comes")
	}
	return false, nil
}

// Await puts the wait for an event on a stream.
func (d *Device) Await(s driver.Stream, e driver.Event) error {
	ev, ok := d.events[e]
	if !ok {
		return fail("cuStreamWaitEvent", "CUDA_ERROR_INVALID_HANDLE", "no such event")
	}
	return d.add("cuStreamWaitEvent", s, work{await: ev, mark: ev.recorded})
}

// FreeEvent forgets an event.
func (d *Device) FreeEvent(e driver.Event) error {
	if d.events[e] == nil {
		return fail("cuEventDestroy", "CUDA_ERROR_INVALID_HANDLE", "no such event")
	}
	delete(d.events, e)
	return nil
}

// BeginCapture begins a graph.
func (d *Device) BeginCapture(s driver.Stream) error {
	q, ok := d.streams[s]
	if !ok {
		return fail("cuStreamBeginCapture", "CUDA_ERROR_INVALID_HANDLE", "no such stream")
	}
	if q.capture {
		return fail("cuStreamBeginCapture", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "the stream is being captured")
	}
	q.capture, q.captured = true, nil
	return d.failed
}

// EndCapture returns the graph of what was put on the stream.
func (d *Device) EndCapture(s driver.Stream) (driver.Graph, error) {
	q, ok := d.streams[s]
	if !ok || !q.capture {
		return 0, fail("cuStreamEndCapture", "CUDA_ERROR_INVALID_VALUE", "the stream is not being captured")
	}
	g := driver.Graph(d.handle())
	d.graphs[g] = q.captured
	q.capture, q.captured = false, nil
	return g, d.failed
}

// LaunchGraph puts the work of a graph on a stream.
func (d *Device) LaunchGraph(g driver.Graph, s driver.Stream) error {
	all, ok := d.graphs[g]
	if !ok {
		return fail("cuGraphLaunch", "CUDA_ERROR_INVALID_HANDLE", "no such graph")
	}
	for _, w := range all {
		if err := d.add("cuGraphLaunch", s, w); err != nil {
			return err
		}
	}
	return nil
}

// FreeGraph forgets a graph.
func (d *Device) FreeGraph(g driver.Graph) error {
	if _, ok := d.graphs[g]; !ok {
		return fail("cuGraphExecDestroy", "CUDA_ERROR_INVALID_HANDLE", "no such graph")
	}
	delete(d.graphs, g)
	return nil
}
