package deploy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
)

// script runs the lines of a transcript:
//
//	deploy NAME DIGEST [replicas=N] [pinned] [idle=D] [canary=X] [observe=D] [load=D] [over=DIGEST]
//	undeploy NAME [over=DIGEST] | rollback NAME DIGEST REASON | wake NAME
//	see DIGEST [open] [requests=N] [rows=N] [failures=N] [losses=N] [noroom] [absent] | unsee DIGEST
//	room N           the hosts have room for N models
//	after D          time passes, with a step in each second
//	takeover [D]     another placer goes on, whose clock is ahead by D
//	places MODEL DIGEST [all]
//
// Each prints what it changes. Expected output follows the line, behind "> ".
type script struct {
	keeper *deploy.Keeper
	state  *deploy.State
	now    time.Duration
	before time.Duration // until the last takeover
	view   deploy.View
	room   int
	out    strings.Builder
}

func newScript() *script {
	s := &script{keeper: deploy.NewKeeper(deploy.Config{}), state: &deploy.State{}, room: -1}
	s.view = deploy.View{Clock: 1_700_000_000_000, Models: map[string]deploy.Sight{}}
	s.view.Fits = func(digests []string) bool {
		return s.room < 0 || len(digests) <= s.room
	}
	return s
}

// options splits the words of a line into a table.
func options(t *testing.T, words []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, w := range words {
		name, value, _ := strings.Cut(w, "=")
		out[name] = value
	}
	return out
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func number(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

func (s *script) run(t *testing.T, line string) {
	t.Helper()
	words := strings.Fields(line)
	change := func(f func(*deploy.State) error) {
		next := s.state.Clone()
		if err := f(next); err != nil {
			fmt.Fprintln(&s.out, "error:", err)
			return
		}
		next.Version++
		s.state = next
		s.show()
	}
	current := func(o map[string]string) *deploy.Version {
		if o["over"] == "" {
			return nil
		}
		return &deploy.Version{Digest: o["over"], Model: words[1]}
	}
	switch words[0] {
	case "deploy":
		o := options(t, words[3:])
		share, _ := strconv.ParseFloat(o["canary"], 64)
		_, pinned := o["pinned"]
		spec := deploy.Spec{Replicas: number(o["replicas"]), Pinned: pinned, Idle: duration(t, o["idle"]), Canary: share,
			Observe: duration(t, o["observe"]), Load: duration(t, o["load"])}
		change(func(n *deploy.State) error {
			return n.Deploy(words[1], spec, deploy.Version{Digest: words[2], Model: "model-" + words[2]}, current(o))
		})
	case "undeploy":
		change(func(n *deploy.State) error { return n.Undeploy(words[1], current(options(t, words[2:]))) })
	case "rollback":
		change(func(n *deploy.State) error {
			fmt.Fprintln(&s.out, n.RollBack(words[1], words[2], 0, strings.Join(words[3:], " ")))
			return nil
		})
	case "wake":
		change(func(n *deploy.State) error {
			fmt.Fprintln(&s.out, n.Wake(words[1]))
			return nil
		})
	case "see":
		o := options(t, words[2:])
		m := deploy.Sight{Requests: number(o["requests"]), Rows: uint64(number(o["rows"])),
			Failures: number(o["failures"]), Losses: number(o["losses"])}
		if _, open := o["open"]; open {
			m.Open = true
		}
		if _, none := o["noroom"]; none {
			m.NoRoom = "not enough memory"
		}
		if _, absent := o["absent"]; absent {
			m.Absent = "no shard has its files"
		}
		if m.Failures+m.Losses > 0 {
			m.Reason = "stage 1 computes nothing"
		}
		s.view.Models[words[1]] = m
	case "unsee":
		delete(s.view.Models, words[1])
	case "room":
		s.room = number(words[1])
	case "after":
		for end := s.now + duration(t, words[1]); s.now < end; {
			s.now += time.Second
			s.view.Clock += time.Second.Milliseconds()
			next, did := s.keeper.Step(s.now-s.before, s.view, s.state)
			for _, c := range did {
				fmt.Fprintf(&s.out, "%v: %v\n", s.now, c)
			}
			if (next != s.state) != (len(did) > 0) || next != s.state && next.Version != s.state.Version+1 {
				t.Errorf("%v: %d commands lead from version %d to %d", s.now, len(did), s.state.Version, next.Version)
			}
			s.state = next
		}
		s.show()
	case "takeover":
		s.keeper, s.before = deploy.NewKeeper(deploy.Config{}), s.now
		if len(words) > 1 {
			s.view.Clock += duration(t, words[1]).Milliseconds()
		}
	case "places":
		w, ok := s.state.Places(words[1], words[2], len(words) > 3)
		fmt.Fprintf(&s.out, "%v replicas=%d yield=%v\n", ok, w.Replicas, w.Yield)
	default:
		t.Fatalf("unknown command %q", line)
	}
}

func (s *script) show() {
	for i := range s.state.Deployments {
		d := &s.state.Deployments[i]
		fmt.Fprintf(&s.out, "%s: %s", d.Name, d.Status())
		if d.Live != nil {
			fmt.Fprintf(&s.out, ", live %s", d.Live.Digest)
		}
		if d.Next != nil {
			fmt.Fprintf(&s.out, ", next %s", d.Next.Digest)
		}
		for _, v := range d.Retiring {
			fmt.Fprintf(&s.out, ", retiring %s", v.Digest)
		}
		if len(d.Past) > 0 {
			fmt.Fprintf(&s.out, ", past %s", strings.Join(d.Past, " "))
		}
		fmt.Fprintln(&s.out)
	}
}

// Each transcript is a story of the life of some models. LAMINA_UPDATE=1 writes what comes out of it.
func TestKeeper_Transcripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newScript()
			var got strings.Builder
			for line := range strings.Lines(string(text)) {
				line = strings.TrimRight(line, "\n")
				if strings.HasPrefix(line, ">") {
					continue
				}
				fmt.Fprintln(&got, line)
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				s.out.Reset()
				s.run(t, line)
				for out := range strings.Lines(s.out.String()) {
					fmt.Fprintf(&got, "> %s", out)
				}
				// The state travels through the registry between any two steps.
				doc, err := s.state.Encode()
				if err != nil {
					t.Fatal(err)
				}
				if s.state, err = deploy.Parse(doc); err != nil {
					t.Fatal(err)
				}
			}
			if os.Getenv("LAMINA_UPDATE") != "" {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got.String() != string(text) {
				t.Errorf("got\n%s\nwant\n%s", got.String(), text)
			}
		})
	}
}
