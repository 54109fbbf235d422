package sched_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// TestScheduler_Transcripts plays testdata/*.txt. A block is a call of Step: its time, one event in each
// line, and after "----" the commands that are expected. The block "config" makes a new scheduler.
// LAMINA_REWRITE=1 writes what the scheduler answers into the files, to be read before it is committed.
func TestScheduler_Transcripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := &player{t: t, added: map[sched.ID]uint64{}}
			var out strings.Builder
			line := 1
			for i, block := range strings.Split(strings.TrimSpace(string(text)), "\n\n") {
				input, want, _ := strings.Cut(block, "\n----")
				got := p.play(strings.Split(input, "\n"))
				want = strings.TrimPrefix(want, "\n")
				if got != want && os.Getenv("LAMINA_REWRITE") == "" {
					t.Errorf("%s:%d: got\n%s\nwant\n%s\nafter\n%s", file, line, got, want, input)
				}
				line += strings.Count(block, "\n") + 2
				if i > 0 {
					out.WriteString("\n\n")
				}
				out.WriteString(input)
				if got != "" {
					out.WriteString("\n----\n" + got)
				}
			}
			if os.Getenv("LAMINA_REWRITE") != "" {
				if err := os.WriteFile(file, []byte(out.String()+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// player plays one transcript.
type player struct {
	t     *testing.T
	s     *sched.Scheduler
	added map[sched.ID]uint64 // the epochs under which sequences were last added to the sampler
}

// args are the words of a line: a list, and values by their keys.
type args struct {
	t    *testing.T
	list []string
	keys map[string]string
}

func parse(t *testing.T, words []string) args {
	a := args{t, nil, map[string]string{}}
	for _, w := range words {
		if key, value, ok := strings.Cut(w, "="); ok {
			a.keys[key] = value
		} else {
			a.list = append(a.list, w)
		}
	}
	return a
}

func (a args) number(text string, otherwise int) int {
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		a.t.Fatalf("want a number, got %q", text)
	}
	return n
}

func (a args) at(i int) int                       { return a.number(a.list[i], 0) }
func (a args) key(name string, otherwise int) int { return a.number(a.keys[name], otherwise) }

func (a args) has(word string) bool {
	for _, w := range a.list[1:] {
		if w == word {
			return true
		}
	}
	return false
}

func (a args) duration(name string) time.Duration {
	d, err := time.ParseDuration(a.keys[name])
	if err != nil && a.keys[name] != "" {
		a.t.Fatal(err)
	}
	return d
}

// tokens reads a list such as 1..4,9.
func (a args) tokens(name string) []int32 {
	var out []int32
	for _, part := range strings.Split(a.keys[name], ",") {
		from, to, isRange := strings.Cut(part, "..")
		if part == "" {
			continue
		}
		first := a.number(from, 0)
		last := first
		if isRange {
			last = a.number(to, 0)
		}
		for i := first; i <= last; i++ {
			out = append(out, int32(i))
		}
	}
	return out
}

func (p *player) play(lines []string) string {
	var now time.Duration
	var events []sched.Event
	var queries []args
	stepped := false
	for _, line := range lines {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		a := parse(p.t, words)
		switch words[0] {
		case "config":
			p.s = sched.New(sched.Config{
				Stages: a.key("stages", 1), Pages: a.key("pages", 16), PageLen: a.key("pagelen", 4),
				Positions: a.key("positions", 1000), Vocab: 100, BatchRows: a.key("rows", 16),
				ChunkRows: a.key("chunk", 16), Entries: a.key("entries", 8), Queue: a.key("queue", 8),
				TenantQueue: a.key("quota", 0), CacheIdle: a.duration("idle"), Floor: a.duration("floor"),
				LoneFloor: a.duration("lone"),
			})
		case "step":
			d, err := time.ParseDuration(words[1])
			if err != nil {
				p.t.Fatal(err)
			}
			now, stepped = d, true
		case "stats", "service", "cached", "reusable", "context", "lost", "due":
			queries = append(queries, a)
		default:
			events = append(events, p.event(words[0], a))
		}
	}
	var out []string
	if stepped {
		for _, c := range p.s.Step(now, events) {
			if add, ok := c.(sched.Add); ok {
				p.added[add.ID] = add.Epoch
			}
			out = append(out, describe(c))
		}
		if err := p.s.Check(); err != nil {
			p.t.Errorf("after %q: %v", lines, err)
		}
	}
	for _, a := range queries {
		out = append(out, p.query(a))
	}
	return strings.Join(out, "\n")
}

// query asks the scheduler something after a step.
func (p *player) query(a args) string {
	switch a.list[0] {
	case "stats":
		s := p.s.Stats()
		return fmt.Sprintf("running %d waiting %d pages %d held %d cached %d evicted %d preemptions %d", s.Running,
			s.Waiting, s.Pages, s.Held, s.Cached, s.Evicted, s.Preemptions)
	case "service":
		return fmt.Sprint(p.s.Service())
	case "cached":
		return fmt.Sprint(p.s.Cached(a.keys["tenant"], a.keys["ns"], a.tokens("log")))
	case "reusable":
		return fmt.Sprint(p.s.Reusable(a.keys["tenant"], a.keys["ns"], a.tokens("log")))
	case "context":
		return fmt.Sprint(p.s.ContextLength())
	case "due":
		at, ok := p.s.Due()
		return fmt.Sprintf("due %v %v", at, ok)
	}
	lost, others := p.s.Lost(a.has("sampler"))
	blamed := make([]string, len(lost))
	for i, b := range lost {
		blamed[i] = fmt.Sprintf("%s %d-%d", b.ID, b.Proven, b.UpTo)
	}
	return fmt.Sprintf("blamed %v others %v", blamed, others)
}

func (p *player) event(name string, a args) sched.Event {
	var id sched.ID
	if len(a.list) > 1 {
		id = sched.ID(a.list[1])
	}
	epoch := uint64(a.key("epoch", 1))
	switch name {
	case "submit":
		p.added[id] = epoch
		log := a.tokens("log")
		e := sched.Submit{
			ID:        id,
			Epoch:     epoch,
			Tenant:    a.keys["tenant"],
			Weight:    float64(a.key("weight", 0)),
			Namespace: a.keys["ns"],
			Priority:  a.key("priority", 0),
			Log:       log,
			MaxLen:    a.key("max", len(log)+4),
			Score:     a.has("score"),
			Suspect:   a.has("suspect"),
			Proven:    a.key("proven", 0),
			Private:   a.has("private"),
			Speculate: a.key("speculate", 0),
			Draft:     a.has("draft"),
		}
		if a.has("candidates") {
			e.Candidates = fourCandidates{}
		}
		return e
	case "cancel":
		return sched.Cancel{ID: id}
	case "reopened":
		return sched.Reopened{Sampler: a.has("sampler"), ReplayUntil: a.key("until", 0)}
	case "proceed":
		return sched.Proceed{ID: id, Suspect: a.has("suspect")}
	case "warm":
		return sched.Warm{}
	case "accepted":
		return sched.Accepted{ID: id, Epoch: uint64(a.key("epoch", int(p.added[id])))}
	case "picked":
		return sched.Picked{ID: id, Epoch: epoch, Position: a.at(2), Token: int32(a.at(3)), Finished: a.has("finished"),
			Logprob: float64(a.key("logprob", 0)), Data: a.list[3]}
	case "scored":
		return sched.Scored{ID: id, Epoch: epoch, Position: a.at(2), Data: a.list[2]}
	case "refused":
		return sched.Refused{ID: id, Epoch: uint64(a.key("epoch", 0)), Step: uint64(a.key("step", 0)),
			Retry: a.has("retry"), Data: "refusal"}
	case "computed":
		return sched.Computed{Step: uint64(a.at(1))}
	case "pause":
		return sched.Pause{ID: id}
	case "resume":
		return sched.Resume{ID: id}
	case "lease":
		return sched.Lease{Lo: a.at(1), Pages: a.at(2)}
	case "spare":
		return sched.Spare{Available: a.list[1] == "yes"}
	case "draftready":
		return sched.DraftReady{ID: id, Ready: !a.has("no")}
	case "drafted":
		return sched.Drafted{ID: id, Round: uint64(a.at(2)), IDs: a.tokens("ids"), Unlikely: a.has("unlikely")}
	case "round":
		e := sched.Round{ID: id, Round: uint64(a.at(2)), Log: a.tokens("log"), End: a.key("end", 0),
			MinLogprob: math.Inf(-1)}
		if a.keys["min"] != "" {
			e.MinLogprob = float64(a.key("min", 0))
		}
		return e
	}
	p.t.Fatalf("unknown event %q", name)
	return nil
}

// fourCandidates says that four candidates always decide the next token.
type fourCandidates struct{}

func (fourCandidates) Need(int, int) int     { return 4 }
func (fourCandidates) Decides(int, int) bool { return true }

// describe writes a command in a line, and a batch with a line for each entry.
func describe(c sched.Command) string {
	switch c := c.(type) {
	case sched.Add:
		return fmt.Sprintf("add %s epoch %d", c.ID, c.Epoch)
	case sched.Remove:
		return fmt.Sprintf("remove %s", c.ID)
	case sched.Release:
		return fmt.Sprintf("release sessions %v pages %v leases %v", c.Sessions, c.Pages, c.Leases)
	case sched.Batch:
		s := fmt.Sprintf("batch %d deadline %v", c.Step, c.Deadline)
		if c.ReplayUntil > 0 {
			s += fmt.Sprintf(" replay until layer %d", c.ReplayUntil)
		}
		at := 0
		for _, e := range c.Entries {
			s += fmt.Sprintf("\n  %s at %d tokens %v", e.ID, e.Position, c.Tokens[at:at+e.Rows])
			at += e.Rows
			if e.Logits > 0 {
				s += fmt.Sprintf(" logits %d", e.Logits)
			}
			if e.Candidates > 0 {
				s += fmt.Sprintf(" candidates %d", e.Candidates)
			}
			if len(e.Drafts) > 0 {
				s += fmt.Sprintf(" drafts %v by %s", e.Drafts, e.Drafter)
			}
			if len(e.Targets) > 0 {
				s += fmt.Sprintf(" targets %v", e.Targets)
			}
			if len(e.Pages) > 0 {
				s += fmt.Sprintf(" pages from %d %v", e.PageFrom, e.Pages)
			}
		}
		return s
	case sched.Admit:
		return fmt.Sprintf("admit %s cached %d again %v", c.ID, c.Cached, c.Again)
	case sched.Share:
		return fmt.Sprintf("share %s cached %d", c.ID, c.Cached)
	case sched.Started:
		return fmt.Sprintf("started %s", c.ID)
	case sched.Emit:
		s := fmt.Sprintf("emit %s %v", c.ID, c.Data)
		if c.Length {
			s += " length"
		}
		if c.Drafter != "" {
			s += " by " + c.Drafter
		}
		if c.Round > 0 {
			s += fmt.Sprintf(" round %d", c.Round)
		}
		return s
	case sched.Score:
		return fmt.Sprintf("score %s %v", c.ID, c.Data)
	case sched.End:
		return fmt.Sprintf("end %s %v", c.ID, c.Data)
	case sched.TurnAway:
		reason := map[sched.Reason]string{sched.QueueFull: "queue full", sched.QuotaUsed: "quota used",
			sched.TooLong: "too long"}[c.Reason]
		return fmt.Sprintf("turn away %s: %s, %d of %d, retry after %v", c.ID, reason, c.Have, c.Need, c.RetryAfter)
	case sched.Preempt:
		return fmt.Sprintf("preempt %s", c.ID)
	case sched.Blame:
		return fmt.Sprintf("blame %s %d-%d", c.ID, c.Proven, c.UpTo)
	case sched.Propose:
		return fmt.Sprintf("propose %s round %d n %d any %v limit %v log %v", c.ID, c.Round, c.N, c.Any, c.Limit, c.Log)
	case sched.Fail:
		return fmt.Sprintf("fail step %d sequence %q late %v", c.Step, c.ID, c.Late)
	}
	return fmt.Sprintf("%T", c)
}
