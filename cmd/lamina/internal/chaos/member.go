package chaos

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	startLimit = 2 * time.Minute  // for a process to print its addresses; a large model loads before
	stopLimit  = 40 * time.Second // for a process to exit after SIGTERM; a drain takes up to 30 s
)

// process is a member of the fleet that runs in a process of its own.
type process struct {
	name, service string
	binary        string
	args          []string // without --listen and --http
	log           string   // file for its standard error
	proxy         *proxy   // in front of its gRPC address; nil for none

	mu        sync.Mutex
	cmd       *exec.Cmd
	addresses map[string]string // "grpc" and, of a router, "http"; kept over restarts
	exited    chan struct{}     // closed when the process has exited
	expected  bool              // a fault or the end of the run made it exit
	crashes   []string          // exits that nothing in the run asked for
}

// start starts the process and waits until it has printed its addresses. A process that was started
// before gets the same addresses again, as a service behind a fixed port would.
func (p *process) start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	grpc, http := "127.0.0.1:0", "127.0.0.1:0"
	if p.addresses != nil {
		grpc, http = p.addresses["grpc"], p.addresses["http"]
	}
	args := append([]string{p.service, "--listen=" + grpc}, p.args...)
	want := 1
	if p.service == router {
		args, want = append(args, "--http="+http), 2
	}
	if p.proxy != nil {
		args = append(args, "--advertise="+p.proxy.addr())
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "start %s", p.name)
	}
	cmd := exec.Command(p.binary, args...)
	cmd.Stderr = log
	detach(cmd)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		_ = log.Close()
		return fault.Wrap(fault.Unavailable, err, "start %s", p.name)
	}
	found := make(chan map[string]string, 1)
	read := make(chan struct{})
	go func() { // ends with the process, which owns the other end of the pipe
		defer close(read)
		found <- scanAddresses(out, want)
		_, _ = io.Copy(io.Discard, out)
	}()
	exited := make(chan struct{})
	p.cmd, p.exited, p.expected = cmd, exited, false
	go func() {
		<-read
		err := cmd.Wait()
		_ = log.Close()
		p.mu.Lock()
		if !p.expected {
			p.crashes = append(p.crashes,
				fmt.Sprintf("%s (pid %d) ended: %v: %s", p.name, cmd.Process.Pid, err, p.lastLine()))
		}
		p.mu.Unlock()
		close(exited)
	}()
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	select {
	case addresses := <-found:
		if len(addresses) < want {
			return fault.New(fault.Unavailable, "start %s: it ended before it served: %s", p.name, p.lastLine())
		}
		p.addresses = addresses
	case <-timer.C:
		return fault.New(fault.DeadlineExceeded, "start %s: it printed no address within %v", p.name, startLimit)
	case <-ctx.Done():
		return fault.Wrap(fault.CodeOf(ctx.Err()), ctx.Err(), "start %s", p.name)
	}
	if p.proxy != nil {
		p.proxy.setTarget(p.addresses["grpc"])
	}
	return nil
}

// scanAddresses reads lines such as "grpc 127.0.0.1:7070".
func scanAddresses(out io.Reader, want int) map[string]string {
	found := map[string]string{}
	lines := bufio.NewScanner(out)
	for len(found) < want && lines.Scan() {
		if name, addr, ok := strings.Cut(lines.Text(), " "); ok && (name == "grpc" || name == "http") {
			found[name] = addr
		}
	}
	return found
}

// lastLine returns the last line of the log.
func (p *process) lastLine() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	text = bytes.TrimSpace(text)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}

// address returns an address that the process has bound.
func (p *process) address(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addresses[name]
}

// running returns the process and a channel that is closed when it exits. If an exit is expected it is
// not counted as a crash.
func (p *process) running(expectExit bool) (*os.Process, <-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil, nil, fault.New(fault.FailedPrecondition, "%s has not been started", p.name)
	}
	select {
	case <-p.exited:
		return nil, nil, fault.New(fault.FailedPrecondition, "%s is not running", p.name)
	default:
	}
	p.expected = p.expected || expectExit
	return p.cmd.Process, p.exited, nil
}

func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// kill ends the process by SIGKILL.
func (p *process) kill() error {
	running, exited, err := p.running(true)
	if err != nil {
		return err
	}
	if err := running.Kill(); err != nil {
		return fault.Wrap(fault.Internal, err, "kill %s", p.name)
	}
	<-exited
	return nil
}

func (p *process) pause() error {
	running, _, err := p.running(false)
	if err != nil {
		return err
	}
	return freeze(running)
}

func (p *process) resume() error {
	running, _, err := p.running(false)
	if err != nil {
		return err
	}
	return thaw(running)
}

// stop ends the process by SIGTERM, and by SIGKILL if it does not exit in time. It returns how long it
// took.
func (p *process) stop() (time.Duration, error) {
	running, exited, err := p.running(true)
	if err != nil {
		return 0, nil // it is gone already
	}
	begin := time.Now()
	if err := terminate(running); err != nil {
		return 0, fault.Wrap(fault.Internal, err, "stop %s", p.name)
	}
	_ = thaw(running) // a paused process would not see the signal
	timer := time.NewTimer(stopLimit)
	defer timer.Stop()
	select {
	case <-exited:
		return time.Since(begin), nil
	case <-timer.C:
	}
	_ = running.Kill()
	<-exited
	return time.Since(begin), fault.New(fault.DeadlineExceeded, "stop %s: it did not exit within %v", p.name, stopLimit)
}

// crashed returns the exits that nothing in the run asked for.
func (p *process) crashed() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.crashes
}

func logFile(dir, name string) string { return filepath.Join(dir, name+".log") }
