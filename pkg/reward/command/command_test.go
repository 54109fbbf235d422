//go:build unix

package command_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/reward"
	"github.com/lamina-mesh/lamina/pkg/reward/command"
)

var sample = reward.Sample{Prompt: "2+2?", Text: "four 4", Answer: "4"}

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestRunner_ScoresByExitAndOutput(t *testing.T) {
	for script, want := range map[string]float64{
		"exit 0":                                 1,
		"exit 3":                                 0,
		"echo 0.25":                              0.25,
		"echo noise; echo 0.5; echo ''":          0.5,
		"echo 7":                                 1,
		"echo -1":                                0,
		"echo none":                              0,
		"echo NaN":                               0,
		"kill -9 $$":                             0,
		`grep -q '"answer":"4"'`:                 1,
		`test -z "$HOME$LAMINA_SHARED"`:          1,
		"test -z \"$(ls -A)\"":                   1,
		"echo 1; echo 0.5 >&2":                   1,
		"yes | head -c 300000; echo; echo 0.125": 0.125,
	} {
		got, err := command.Runner{}.Run(t.Context(), sh(script), sample)
		if err != nil || got != want {
			t.Errorf("%q scores %g, %v, want %g", script, got, err, want)
		}
	}
}

// TestRunner_RunsAProgramOfTheWorkingFolder names a program by a relative path. It runs in a folder of its own.
func TestRunner_RunsAProgramOfTheWorkingFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("score.sh", []byte("#!/bin/sh\ntest ! -e score.sh && echo 0.75\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := (command.Runner{}).Run(t.Context(), []string{"./score.sh"}, sample); err != nil || got != 0.75 {
		t.Errorf("scores %g, %v, want 0.75", got, err)
	}
}

// TestRunner_LimitsScoreZero runs programs that never end, or take too much.
func TestRunner_LimitsScoreZero(t *testing.T) {
	r := command.Runner{Limits: command.Limits{Wall: 2 * time.Second, CPU: time.Second, Memory: 64 << 20,
		File: 1 << 20}}
	for name, script := range map[string]string{
		"sleeps": "sleep 600",
		"leaves": "sleep 600 & exit 1",
		"writes": "head -c 3000000 /dev/zero > big && exit 0; exit 1",
		"takes":  "head -c 200000000 /dev/zero | tail -c 150000000 > /dev/null && exit 0; exit 1",
		"spins":  "while :; do :; done",
	} {
		began := time.Now()
		got, err := r.Run(t.Context(), sh(script), sample)
		if err != nil || got != 0 {
			t.Errorf("%s: score %g, %v", name, got, err)
		}
		if took := time.Since(began); took > 60*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

func TestRunner_Errors(t *testing.T) {
	if _, err := (command.Runner{}).Run(t.Context(), []string{"no-such-program"}, sample); fault.CodeOf(err) !=
		fault.NotFound {
		t.Errorf("a program that is missing: %v", err)
	}
	if _, err := (command.Runner{}).Run(t.Context(), nil, sample); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("no program: %v", err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (command.Runner{}).Run(stopped, sh("exit 0"), sample); !errors.Is(err, context.Canceled) {
		t.Errorf("after a cancel: %v", err)
	}
}

// TestRunner_LeavesNothing looks for temporary folders.
func TestRunner_LeavesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	if _, err := (command.Runner{}).Run(t.Context(), sh("mkdir -p a/b; touch a/b/c; pwd"), sample); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %s, %v", strings.Join(left, " "), err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

// TestRunner_FolderThatStaysEndsNothing runs programs that leave something behind that cannot be removed at once. The
// score counts, and whoever asked is told of what stays.
func TestRunner_FolderThatStaysEndsNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	left := 0
	r := command.Runner{Leftover: func(name string, err error) {
		left++
		if filepath.Dir(name) != dir || err == nil {
			t.Errorf("told of %s, %v", name, err)
		}
	}}
	stays := func() []string {
		found, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	t.Cleanup(func() { // nothing else removes a file that cannot be changed
		for _, path := range stays() {
			_ = exec.Command("chattr", "-R", "-i", path).Run()
		}
	})
	// Only root can remove what a folder without permissions holds.
	score, err := r.Run(t.Context(), sh("mkdir -p a/b/c; touch a/b/c/d; chmod 0 a/b/c a/b a; echo 0.5"), sample)
	if err != nil || score != 0.5 || left != 0 || len(stays()) != 0 {
		t.Errorf("folders without permissions: score %v, %v; %d left behind", score, err, len(stays()))
	}
	// Where there are such files, nobody can remove one that is immutable. Elsewhere it is removed.
	score, err = r.Run(t.Context(), sh("touch a; chattr +i a 2> noise; echo 0.25"), sample)
	if err != nil || score != 0.25 || left != len(stays()) {
		t.Errorf("an immutable file: score %v, %v; %d left behind, told of %d", score, err, len(stays()), left)
	}
}
