//go:build !unix

package chaos

import (
	"os"
	"os/exec"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

func detach(*exec.Cmd) {}

func freeze(p *os.Process) error {
	return fault.New(fault.FailedPrecondition, "pause process %d: this platform has no signal for it", p.Pid)
}

func thaw(p *os.Process) error { return freeze(p) }

func terminate(p *os.Process) error { return p.Kill() }
