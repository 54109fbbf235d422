package twin

import "sync"

// Faults break the devices of a twin while they work. The methods may be called from any goroutine.
type Faults struct {
	mu    sync.Mutex
	fail  string // name of the error of the next kernel; empty for none
	hang  bool
	block chan struct{} // closed by Release; nil if calls return
}

// FailNext makes the next kernel that begins fail, with an error of the driver such as CUDA_ERROR_ILLEGAL_ADDRESS.
func (f *Faults) FailNext(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = name
}

// Hang stops all streams: what is on them never ends.
func (f *Faults) Hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = true
}

// Block makes polls and the calls that wait for work not return until Release.
func (f *Faults) Block() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.block == nil {
		f.block = make(chan struct{})
	}
}

// Release lets calls return again.
func (f *Faults) Release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.block != nil {
		close(f.block)
		f.block = nil
	}
}

// next returns the error of the kernel that begins now, or nothing.
func (f *Faults) next() (name string) {
	if f == nil {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	name, f.fail = f.fail, ""
	return name
}

// hangs reports whether the streams have stopped.
func (f *Faults) hangs() bool {
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hang
}

// pass returns when calls do.
func (f *Faults) pass() {
	if f == nil {
		return
	}
	f.mu.Lock()
	block := f.block
	f.mu.Unlock()
	if block != nil {
		<-block
	}
}
