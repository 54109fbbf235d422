//go:build unix

package mcptools

import (
	"os"
	"os/exec"
	"syscall"
)

// group is a process group, to which all processes belong that a program starts, unless one leaves it on purpose.
type group struct{ leader int }

// prepare has the program begin a group.
func (g *group) prepare(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// add takes the program that was started.
func (g *group) add(p *os.Process) error {
	g.leader = p.Pid
	return nil
}

// kill ends all processes of the group. There may be none left.
func (g *group) kill() {
	if g.leader > 0 {
		_ = syscall.Kill(-g.leader, syscall.SIGKILL)
	}
}
