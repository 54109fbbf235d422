//go:build unix

package chaos

import (
	"os"
	"os/exec"
	"syscall"
)

// detach puts a process into a group of its own, so that an interrupt from the terminal reaches only
// this process, which then stops the fleet in order.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func freeze(p *os.Process) error { return p.Signal(syscall.SIGSTOP) }

func thaw(p *os.Process) error { return p.Signal(syscall.SIGCONT) }

func terminate(p *os.Process) error { return p.Signal(syscall.SIGTERM) }
