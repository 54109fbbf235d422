package mcptools

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// group is a job object, to which all processes belong that a program starts after it was added. The system ends them
// when the last handle of the job is closed, and so also when this process dies.
type group struct {
	mu  sync.Mutex
	job windows.Handle
}

// prepare does nothing: a program is added to a job after its start.
func (g *group) prepare(*exec.Cmd) {}

// add takes the program that was started.
func (g *group) add(p *os.Process) error {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return fmt.Errorf("create a job object: %w", err)
	}
	var limits windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
	if err == nil {
		var process windows.Handle
		process, err = windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(p.Pid))
		if err == nil {
			err = errors.Join(windows.AssignProcessToJobObject(job, process), windows.CloseHandle(process))
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("set up a job object: %w", err), windows.CloseHandle(job))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.job = job
	return nil
}

// kill ends all processes of the job.
func (g *group) kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.job != 0 {
		_ = windows.CloseHandle(g.job)
		g.job = 0
	}
}
