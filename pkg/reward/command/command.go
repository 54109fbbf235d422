//go:build unix

// Package command scores texts with a program of the user's, in a process of its own with limits.
//
// The program reads one line of JSON from standard input: {"prompt", "text", "answer"}. If it exits with 0, its
// last line of output is the score, a number from 0 to 1; without output the score is 1. Any other exit, a signal,
// or a limit that is exceeded scores 0, since the text is the reason as far as can be told. A program that cannot
// be started is an error.
//
// The program is looked up in PATH, or from the working folder if its name has a slash. The process runs in an empty
// temporary folder, so files among its arguments need absolute names, with an empty environment but for PATH, in a
// process group of its own that is killed at the end. Limits are set by the shell's ulimit before the program starts:
// processor time, memory, size of files, no core dumps. Wall-clock time and output are bounded here. That stops
// mistakes and runaway programs; it is no protection from hostile ones, which a container or a virtual machine is for:
// files and the network can be reached.
package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/reward"
)

// Limits bound a process. Zero fields take the defaults.
type Limits struct {
	Wall   time.Duration // 10 s
	CPU    time.Duration // processor time, rounded up to seconds; 5 s
	Memory int64         // address space in bytes; 512 MiB
	File   int64         // size of a file that is written, in bytes; 16 MiB
	Output int           // bytes of output that are kept; 64 KiB
}

// withDefaults returns the limits with the defaults filled in.
func (l Limits) withDefaults() Limits {
	if l.Wall <= 0 {
		l.Wall = 10 * time.Second
	}
	if l.CPU <= 0 {
		l.CPU = 5 * time.Second
	}
	if l.Memory <= 0 {
		l.Memory = 512 << 20
	}
	if l.File <= 0 {
		l.File = 16 << 20
	}
	if l.Output <= 0 {
		l.Output = 64 << 10
	}
	return l
}

// Runner runs programs. It is a reward.Runner.
type Runner struct {
	Limits Limits
	// Leftover, if set, is told of a folder of a process that cannot be removed. The score counts all the same.
	Leftover func(dir string, err error)
}

// script sets the limits of the shell, which the program then replaces. ulimit counts files in blocks of 512 bytes and
// memory in KiB. 127 and 126 are the shell's own codes for a program that is missing or cannot be run.
const script = `ulimit -c 0 && ulimit -t "$1" && ulimit -v "$2" && ulimit -f "$3" && shift 3 && exec "$@"`

// Run scores a text.
func (r Runner) Run(ctx context.Context, command []string, s reward.Sample) (float64, error) {
	if len(command) == 0 {
		return 0, fault.Field("reward.command", "want a program")
	}
	program, err := exec.LookPath(command[0])
	if err == nil { // the process has another working folder
		program, err = filepath.Abs(program)
	}
	if err != nil {
		return 0, fault.Wrap(fault.NotFound, err, "run the reward's program")
	}
	l := r.Limits.withDefaults()
	dir, err := os.MkdirTemp("", "lamina-reward-")
	if err != nil {
		return 0, err
	}
	defer func() {
		if failure := remove(dir); failure != nil && r.Leftover != nil {
			r.Leftover(dir, failure)
		}
	}()
	input, err := json.Marshal(s)
	if err != nil {
		return 0, err
	}
	inner, cancel := context.WithTimeout(ctx, l.Wall)
	defer cancel()
	args := append([]string{"-c", script, "sh", strconv.Itoa(int((l.CPU + time.Second - 1) / time.Second)),
		strconv.FormatInt(l.Memory>>10, 10), strconv.FormatInt((l.File+511)/512, 10), program}, command[1:]...)
	cmd := exec.CommandContext(inner, "/bin/sh", args...)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdin = bytes.NewReader(append(input, '\n'))
	out := &tail{limit: l.Output}
	cmd.Stdout = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	cmd.WaitDelay = time.Second // for children that keep the pipes open
	if err := cmd.Start(); err != nil {
		return 0, fault.Wrap(fault.Internal, err, "run the reward's program %s", program)
	}
	err = cmd.Wait()
	_ = kill() // what the program has left running; there may be nothing
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return parse(out.text()), nil
	case errors.As(err, &exit) && (exit.ExitCode() == 126 || exit.ExitCode() == 127):
		return 0, fault.New(fault.FailedPrecondition, "run the reward's program %s: exit code %d", program, exit.ExitCode())
	}
	return 0, nil
}

// remove removes the folder of a process. A program may have taken the permissions of folders below it away, without
// which nobody but root can remove what they hold. So every folder gets them back if removing fails at first.
func remove(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() { // this comes before the folder is read
			_ = os.Chmod(path, 0o700)
		}
		return nil // RemoveAll reports what stays
	})
	return os.RemoveAll(dir)
}

// parse returns the score in the last line: 1 without one, and 0 if it is no number. It is limited to the range
// from 0 to 1.
func parse(text string) float64 {
	text = strings.TrimSpace(text)
	if text == "" {
		return 1
	}
	line := strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
	v, err := strconv.ParseFloat(line, 64)
	if err != nil || v != v {
		return 0
	}
	return min(max(v, 0), 1)
}

// tail keeps the end of what is written to it.
type tail struct {
	limit int
	data  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if len(t.data) > 2*t.limit {
		t.data = append(t.data[:0], t.data[len(t.data)-t.limit:]...)
	}
	return len(p), nil
}

func (t *tail) text() string { return string(t.data[max(0, len(t.data)-t.limit):]) }
