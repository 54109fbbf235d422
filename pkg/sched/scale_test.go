package sched_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// pipeline answers the batches of a scheduler at once, with random tokens.
type pipeline struct {
	s     *sched.Scheduler
	now   time.Duration
	rnd   *rand.Rand
	ended []sched.ID
}

// step calls Step and returns the events that answer its commands. Each batch takes a millisecond.
func (p *pipeline) step(events []sched.Event) []sched.Event {
	p.now += time.Millisecond
	return p.answer(p.s.Step(p.now, events), nil)
}

func (p *pipeline) answer(commands []sched.Command, out []sched.Event) []sched.Event {
	for _, c := range commands {
		switch c := c.(type) {
		case sched.Add:
			out = append(out, sched.Accepted(c))
		case sched.Remove:
			p.ended = append(p.ended, c.ID)
		case sched.Batch:
			chunks := false
			for _, e := range c.Entries {
				chunks = chunks || e.Logits == 0
				if e.Logits > 0 {
					out = append(
						out,
						sched.Picked{ID: e.ID, Epoch: e.Epoch, Position: e.Position + e.Rows - len(e.Drafts),
							Token: p.rnd.Int32N(1000)},
					)
				}
			}
			if chunks {
				out = append(out, sched.Computed{Step: c.Step})
			}
		}
	}
	return out
}

func config(pages int) sched.Config {
	return sched.Config{Stages: 2, Pages: pages, PageLen: 16, Positions: 1 << 20, Vocab: 1000, BatchRows: 4096,
		ChunkRows: 512, Entries: 1024, Queue: 1 << 20, CacheIdle: time.Hour}
}

// BenchmarkScheduler_Step measures Step with 1,000 running sequences, and with 1,000 more that wait.
func BenchmarkScheduler_Step(b *testing.B) {
	for _, waiting := range []int{0, 1000} {
		b.Run(fmt.Sprintf("running=1000/waiting=%d", waiting), func(b *testing.B) {
			p := &pipeline{s: sched.New(config(1 << 20)), rnd: rand.New(rand.NewPCG(1, 2))}
			var events []sched.Event
			for i := range 1000 + waiting {
				events = append(events, sched.Submit{ID: sched.ID(fmt.Sprintf("session-%06d", i)), Epoch: 1,
					Tenant: fmt.Sprintf("tenant-%d", i%10), Log: []int32{1, 2, int32(i)}, MaxLen: 1 << 20})
			}
			// Leave places for 1,000 only.
			for range 20 {
				events = p.step(events)
			}
			b.ReportAllocs()
			b.ResetTimer()
			rows := 0
			for range b.N {
				events = p.step(events)
				rows += len(events)
			}
			b.ReportMetric(float64(rows)/float64(b.N), "tokens/step")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(max(1, rows)), "ns/token")
		})
	}
}

// TestPrefix_MillionPages measures the memory of a scheduler whose prefix cache holds a million pages.
func TestPrefix_MillionPages(t *testing.T) {
	const pages, length = 1 << 20, 512 * 16
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := &pipeline{s: sched.New(config(pages)), rnd: rand.New(rand.NewPCG(1, 2))}
	var events []sched.Event
	for i := range pages / 512 {
		log := make([]int32, length)
		for j := range log {
			log[j] = p.rnd.Int32()
		}
		events = append(events, sched.Submit{ID: sched.ID(fmt.Sprint(i)), Epoch: 1, Log: log, MaxLen: length + 1})
		for range 64 {
			if events = p.step(events); len(p.ended) > i {
				break
			}
		}
	}
	s := p.s.Stats()
	if s.Cached < pages*99/100 {
		t.Fatalf("%d of %d pages are cached", s.Cached, pages)
	}
	clear(events)
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := (after.HeapAlloc - before.HeapAlloc) >> 20
	if used > 256 {
		t.Errorf("%d MiB for %d pages, want at most 256", used, s.Cached)
	}
	t.Logf("%d MiB for %d cached pages", used, s.Cached)
	runtime.KeepAlive(p)
}

// TestRoute_TurnsOfChats drives 64 chats of 8 turns over two replicas and compares the cached positions
// with an oracle: all full pages of what the chat has computed so far.
func TestRoute_TurnsOfChats(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var replicas [2]*pipeline
	for i := range replicas {
		replicas[i] = &pipeline{s: sched.New(config(4096)), rnd: rnd}
	}
	logs := make([][]int32, 64)
	hits, oracle := 0, 0
	var load [2]int
	for turn := range 8 {
		texts := map[sched.ID][]int32{}
		var events [2][]sched.Event
		var ids [2]map[sched.ID]int
		for i, r := range replicas {
			ids[i], r.ended = map[sched.ID]int{}, nil
		}
		for _, chat := range rnd.Perm(len(logs)) {
			done := len(logs[chat]) / 16 * 16
			for range 20 + rnd.IntN(100) {
				logs[chat] = append(logs[chat], rnd.Int32N(1000))
			}
			log := logs[chat]
			var candidates []sched.Candidate
			for i, r := range replicas {
				candidates = append(candidates, sched.Candidate{Load: len(ids[i]), Cached: r.s.Cached("", "", log)})
			}
			at := sched.Route(candidates)
			load[at]++
			hits += candidates[at].Cached
			oracle += done
			id := sched.ID(fmt.Sprintf("%d-%d", turn, chat))
			ids[at][id] = chat
			events[at] = append(events[at], sched.Submit{ID: id, Epoch: 1, Log: log, MaxLen: len(log) + 16})
		}
		for i, r := range replicas {
			for len(r.ended) < len(ids[i]) {
				events[i] = r.step(events[i])
				for _, e := range events[i] {
					if picked, ok := e.(sched.Picked); ok {
						texts[picked.ID] = append(texts[picked.ID], picked.Token)
					}
				}
			}
			for id, chat := range ids[i] { // the keys and values of the last token were not computed
				logs[chat] = append(logs[chat], texts[id][:len(texts[id])-1]...)
			}
		}
	}
	rate := float64(hits) / float64(oracle)
	if rate < 0.9 {
		t.Errorf("%.1f %% of what an oracle finds, want 90", 100*rate)
	}
	if high, low := max(load[0], load[1]), min(load[0], load[1]); 2*high > 3*low {
		t.Errorf("the replicas have had %v turns", load)
	}
	t.Logf("%.1f %% of what an oracle finds; load %v", 100*rate, load)
}

// TestRoute_SingleTurns sends requests without common prefixes to two replicas.
func TestRoute_SingleTurns(t *testing.T) {
	var load, given [2]int
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 10000 {
		at := sched.Route([]sched.Candidate{{Load: load[0]}, {Load: load[1]}})
		load[at]++
		given[at]++
		for i := range load { // each ends after about eight others have arrived
			for range load[i] {
				if rnd.IntN(8) == 0 {
					load[i]--
				}
			}
		}
	}
	if high, low := max(given[0], given[1]), min(given[0], given[1]); 5*high > 6*low {
		t.Errorf("the replicas have had %v requests", given)
	}
}

// TestScheduler_AnyEvents makes sure that no events, however wrong, harm the scheduler, and that two
// schedulers with the same events give the same commands.
func TestScheduler_AnyEvents(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		c := config(1 + rnd.IntN(40))
		c.PageLen, c.BatchRows, c.ChunkRows = 1+rnd.IntN(4), 1+rnd.IntN(9), 1+rnd.IntN(9)
		c.Queue, c.Entries = 6, 1+rnd.IntN(6)
		c.Stages = 1 + rnd.IntN(3)
		a, b := sched.New(c), sched.New(c)
		now := time.Duration(0)
		epochs := map[sched.ID]uint64{}
		var answers []sched.Event
		for step := range 300 {
			events := answers
			answers = nil
			for range rnd.IntN(4) {
				events = append(events, anyEvent(rnd, epochs))
			}
			now += time.Duration(rnd.IntN(30)) * time.Millisecond
			commands := a.Step(now, events)
			if got, want := fmt.Sprint(b.Step(now, events)), fmt.Sprint(commands); got != want {
				t.Fatalf("seed %d, step %d: two schedulers differ:\n%s\n%s", seed, step, got, want)
			}
			if err := a.Check(); err != nil {
				t.Fatalf("seed %d, step %d: %v after %+v", seed, step, err, events)
			}
			p := &pipeline{rnd: rnd}
			answers = p.answer(commands, nil)
			if rnd.IntN(4) == 0 { // some answers are lost
				answers = answers[:len(answers)/2]
			}
		}
	}
}

func anyEvent(rnd *rand.Rand, epochs map[sched.ID]uint64) sched.Event {
	id := sched.ID(fmt.Sprint(rnd.IntN(12)))
	log := make([]int32, 1+rnd.IntN(30))
	for i := range log {
		log[i] = rnd.Int32N(3)
	}
	switch rnd.IntN(14) {
	case 0, 1, 2:
		epochs[id]++
		id = sched.ID(fmt.Sprintf("%s.%d", id, epochs[id])) // names are never used twice
		return sched.Submit{ID: id, Epoch: 1 + rnd.Uint64N(2), Tenant: fmt.Sprint(rnd.IntN(3)), Log: log,
			MaxLen: len(log) + rnd.IntN(8), Priority: rnd.IntN(3), Score: rnd.IntN(4) == 0, Suspect: rnd.IntN(4) == 0,
			Private: rnd.IntN(4) == 0, Speculate: rnd.IntN(4), Draft: rnd.IntN(6) == 0}
	}
	id = sched.ID(fmt.Sprintf("%s.%d", id, epochs[id]))
	switch rnd.IntN(13) {
	case 0:
		return sched.Cancel{ID: id}
	case 1:
		return sched.Accepted{ID: id, Epoch: 1 + rnd.Uint64N(3)}
	case 2:
		return sched.Picked{ID: id, Epoch: 1, Position: rnd.IntN(30), Token: rnd.Int32N(3), Finished: rnd.IntN(2) == 0}
	case 3:
		return sched.Scored{ID: id, Epoch: 1, Position: rnd.IntN(30)}
	case 4:
		return sched.Refused{ID: id, Retry: rnd.IntN(2) == 0, Step: rnd.Uint64N(300)}
	case 5:
		return sched.Computed{Step: rnd.Uint64N(300)}
	case 6:
		return sched.Pause{ID: id}
	case 7:
		return sched.Resume{ID: id}
	case 8:
		return sched.Lease{Lo: rnd.IntN(2), Pages: rnd.IntN(40)}
	case 9:
		return sched.Spare{Available: rnd.IntN(2) == 0}
	case 10:
		return sched.DraftReady{ID: id, Ready: true}
	case 11:
		return sched.Drafted{ID: id, Round: rnd.Uint64N(9), IDs: log[:min(4, len(log))]}
	}
	return sched.Round{ID: id, Log: log, End: len(log) + 3, Round: rnd.Uint64N(9)}
}
