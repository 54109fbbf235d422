package sched_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/sched"
)

// brokenChain is a chain of stages whose streams break and that are lost, with a sampler. Each stage has
// one layer. A stage's pages hold tokens, so a page with the keys and values of another log is noticed.
type brokenChain struct {
	t       *testing.T
	rnd     *rand.Rand
	s       *sched.Scheduler
	now     time.Duration
	pageLen int
	stages  []*modelStage
	hops    [][]any // frames on their way to each stage
	late    []batch // the rows of former chains, on their way to the sampler
	results []sched.Event
	picks   map[sched.ID]*modelSession
	logs    map[sched.ID][]int32 // prompt and emitted tokens
	sent    map[sched.ID][]int32 // the tokens of all positions up to the last one that was sent
	ends    map[sched.ID]int     // the lengths of complete logs
	names   []sched.ID           // of the sequences now
	open    int
	breaks  int
	losses  int
	rows    int
	again   int // rows of replays
	chained int // windows that were sent behind others
}

type modelStage struct {
	pages  map[uint32][]int32
	tables map[sched.ID][]uint32
}

func newModelStage() *modelStage { return &modelStage{map[uint32][]int32{}, map[sched.ID][]uint32{}} }

type modelSession struct {
	epoch uint64
	log   []int32
}

// after is the model: the token that follows a log. Few ids, so that n-grams are found again.
func after(log []int32) int32 {
	h := uint32(2166136261)
	for _, t := range log[max(0, len(log)-3):] {
		h = (h ^ uint32(t)) * 16777619
	}
	return int32(h >> 8 % 5)
}

func (c *brokenChain) step(events ...sched.Event) {
	c.now += time.Millisecond
	for _, command := range c.s.Step(c.now, events) {
		switch e := command.(type) {
		case sched.Add:
			c.picks[e.ID] = &modelSession{e.Epoch, slices.Clone(c.logs[e.ID])}
			c.results = append(c.results, sched.Accepted(e))
		case sched.Remove:
			delete(c.picks, e.ID)
			c.open--
		case sched.Release:
			c.hops[0] = append(c.hops[0], e)
		case sched.Batch:
			c.hops[0] = append(c.hops[0], c.frame(e))
		case sched.Emit:
			c.logs[e.ID] = append(c.logs[e.ID], e.Data.(int32))
		case sched.Blame:
			c.results = append(c.results, sched.Proceed{ID: e.ID})
		case sched.Fail, sched.TurnAway, sched.End:
			c.t.Fatalf("%T%+v", e, e)
		}
	}
	if err := c.s.Check(); err != nil {
		c.t.Fatal(err)
	}
}

// batch is a batch with the tokens that have to be on the pages before each entry.
type batch struct {
	sched.Batch
	before [][]int32
}

// frame copies a batch, since commands are valid until the next step only. An entry goes on from the log,
// or with a chained window from the entry before it.
func (c *brokenChain) frame(b sched.Batch) batch {
	out := batch{Batch: b}
	out.Tokens, out.Entries = slices.Clone(b.Tokens), slices.Clone(b.Entries)
	rest := out.Tokens
	for _, e := range b.Entries {
		before := c.logs[e.ID]
		if len(e.Drafts) > 0 && len(e.Drafts) == e.Logits {
			before = c.sent[e.ID]
			c.chained++
			if len(before) != e.Position {
				c.t.Fatalf("%s sends a window at position %d behind position %d", e.ID, e.Position, len(before))
			}
		}
		before = slices.Clone(before[:e.Position])
		out.before = append(out.before, before)
		c.sent[e.ID] = append(slices.Clone(before), rest[:e.Rows]...)
		rest = rest[e.Rows:]
	}
	return out
}

// deliver hands the oldest frame on a hop to its stage.
func (c *brokenChain) deliver(hop int) {
	frame := c.hops[hop][0]
	c.hops[hop] = c.hops[hop][1:]
	st := c.stages[hop]
	switch f := frame.(type) {
	case sched.Release:
		for _, id := range f.Sessions {
			delete(st.tables, id)
		}
		for _, page := range f.Pages {
			for id, table := range st.tables {
				if slices.Contains(table, page) {
					c.t.Fatalf("page %d is released, %s names it", page, id)
				}
			}
			delete(st.pages, page)
		}
	case batch:
		rest := f.Tokens
		for i, e := range f.Entries {
			if f.ReplayUntil > 0 && e.Logits > 0 {
				c.t.Fatalf("a replay of %s wants logits", e.ID)
			}
			if c.compute(st, e, f.before[i], rest[:e.Rows]); f.ReplayUntil > 0 {
				c.again += e.Rows
			}
			rest = rest[e.Rows:]
		}
		switch {
		case f.ReplayUntil == hop+1:
			c.results = append(c.results, sched.Computed{Step: f.Step})
			return
		case hop == len(c.stages)-1:
			if c.sample(f) {
				c.results = append(c.results, sched.Computed{Step: f.Step})
			}
			return
		}
	}
	if hop < len(c.stages)-1 {
		c.hops[hop+1] = append(c.hops[hop+1], frame)
	}
}

// compute changes a table and writes an entry's tokens. before has to stand before them.
func (c *brokenChain) compute(st *modelStage, e sched.Entry, before, tokens []int32) {
	c.rows += len(tokens)
	if e.PageFrom > 0 || len(e.Pages) > 0 {
		if e.PageFrom > len(st.tables[e.ID]) {
			c.t.Fatalf("%s changes its table from %d on, the stage knows %d", e.ID, e.PageFrom, len(st.tables[e.ID]))
		}
		st.tables[e.ID] = append(slices.Clone(st.tables[e.ID][:e.PageFrom]), e.Pages...)
	}
	table := st.tables[e.ID]
	if len(table)*c.pageLen < e.Position+e.Rows {
		c.t.Fatalf("%s computes position %d, its table has %d pages", e.ID, e.Position+e.Rows-1, len(table))
	}
	for i, want := range before {
		if page := st.pages[table[i/c.pageLen]]; page == nil || page[i%c.pageLen] != want {
			c.t.Fatalf("%s goes on at position %d, but position %d is not on page %d: %v", e.ID, e.Position, i,
				table[i/c.pageLen], page)
		}
	}
	for _, id := range table {
		if st.pages[id] == nil {
			st.pages[id] = make([]int32, c.pageLen)
		}
	}
	for i, token := range tokens {
		pos := e.Position + i
		st.pages[table[pos/c.pageLen]][pos%c.pageLen] = token
	}
}

// sample picks tokens for the rows that the last stage has computed, and reports whether there are also
// chunks of prompts.
func (c *brokenChain) sample(b batch) (chunks bool) {
	rest := b.Tokens
	for n, e := range b.Entries {
		chunks = chunks || e.Logits == 0
		q := c.picks[e.ID]
		computed := append(slices.Clone(b.before[n]), rest[:e.Rows]...)
		rest = rest[e.Rows:]
		for i := range e.Logits {
			pos := e.Position + e.Rows - e.Logits + i
			draft := i - e.Logits + len(e.Drafts)
			if q == nil || q.epoch != e.Epoch || pos != len(q.log)-1 ||
				len(e.Drafts) > 0 && draft >= 0 && q.log[pos] != e.Drafts[draft] {
				break
			}
			id := after(computed[:pos+1])
			q.log = append(q.log, id)
			c.results = append(
				c.results,
				sched.Picked{ID: e.ID, Epoch: e.Epoch, Position: pos + 1, Token: id, Data: id},
			)
		}
	}
	return chunks
}

// submit submits a log.
func (c *brokenChain) submit(id sched.ID) {
	c.open++
	c.step(sched.Submit{ID: id, Epoch: 1, Log: c.logs[id], MaxLen: c.ends[id], Speculate: 3 * int(id[1]%2)})
}

// restart cancels a sequence and submits what it has under another name.
func (c *brokenChain) restart(old sched.ID) {
	if c.picks[old] == nil {
		return
	}
	id := old + "'"
	c.logs[id], c.ends[id] = slices.Clone(c.logs[old]), c.ends[old]
	c.step(sched.Cancel{ID: old})
	c.submit(id)
	c.names[slices.Index(c.names, old)] = id
}

// reopen breaks the chain. With sampler, the sampler's stream breaks too, and its results are lost.
// Otherwise some of them arrive later. The stages that are lost come back empty.
func (c *brokenChain) reopen(sampler bool, lost ...int) {
	c.breaks++
	c.late = nil
	for _, frame := range c.hops[len(c.hops)-1] { // the last stage has computed some of them
		if b, ok := frame.(batch); ok && !sampler && len(lost) == 0 && c.rnd.IntN(2) == 0 {
			c.late = append(c.late, b)
		} else {
			break
		}
	}
	clear(c.hops)
	until := 0
	for _, i := range lost {
		c.losses++
		c.stages[i] = newModelStage()
		until = max(until, i+1)
	}
	for _, st := range c.stages {
		clear(st.tables)
	}
	if sampler {
		c.results = nil
		clear(c.picks)
	}
	n := c.rnd.IntN(len(c.results) + 1)
	events := append(slices.Clone(c.results[:n]), sched.Reopened{Sampler: sampler, ReplayUntil: until})
	for _, id := range slices.Sorted(maps.Keys(c.picks)) { // some readers have no room just now
		if c.rnd.IntN(4) == 0 {
			events = append(events, sched.Pause{ID: id})
		}
	}
	c.results = slices.Clone(c.results[n:])
	c.step(events...)
}

// TestScheduler_Reopened breaks a chain again and again. Every sequence gets its tokens, from pages that
// hold its log, and pages are neither lost nor computed from the beginning.
func TestScheduler_Reopened(t *testing.T) {
	const tokens = 40
	total, breaks, losses, again, chained := 0, 0, 0, 0, 0
	for seed := range uint64(72) {
		c := &brokenChain{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), pageLen: 4, picks: map[sched.ID]*modelSession{},
			logs: map[sched.ID][]int32{}, sent: map[sched.ID][]int32{}, ends: map[sched.ID]int{}}
		stages := 2 + int(seed/4%2)
		for range stages {
			c.stages = append(c.stages, newModelStage())
		}
		c.hops = make([][]any, stages)
		loses := seed%3 > 0
		c.s = sched.New(
			sched.Config{Stages: stages, Pages: 60, PageLen: c.pageLen, Positions: 200, Vocab: 5, BatchRows: 24,
				ChunkRows: 6, Entries: 4, Queue: 99, CacheIdle: time.Hour * time.Duration(seed%2)},
		)
		var prompts [][]int32
		for i := range 6 {
			id, log := sched.ID(fmt.Sprint("q", i)), []int32{1, 2, 3, 4, 1, 2, 3, 4, 1} // the others share its pages
			for range c.rnd.IntN(12) {
				log = append(log, int32(c.rnd.IntN(5)))
			}
			prompts, c.logs[id] = append(prompts, log), slices.Clone(log)
			c.ends[id] = len(log) + tokens
			c.names = append(c.names, id)
			c.submit(id)
		}
		for n := 0; c.open > 0; n++ {
			if n > 100_000 {
				t.Fatalf("seed %d: %d sequences do not end", seed, c.open)
			}
			switch k := c.rnd.IntN(200); {
			case k == 0:
				c.reopen(false)
			case k == 1 && seed%4 < 2: // this one heals more
				c.reopen(true)
			case k == 197:
				c.restart(c.names[c.rnd.IntN(len(c.names))])
			case k == 198 && loses:
				c.reopen(false, c.rnd.IntN(stages))
			case k == 199 && loses && c.rnd.IntN(4) == 0:
				c.reopen(seed%4 < 2, 0, c.rnd.IntN(stages))
			case k > 1 && k < 8:
				c.step(sched.Resume{ID: c.names[k-2]})
			case k < 150 && len(c.hops[k%stages]) > 0:
				c.deliver(k % stages)
			case k < 155 && len(c.late) > 0:
				b := c.late[0]
				c.late = c.late[1:]
				c.sample(b)
			case len(c.results) > 0:
				e := c.results[0]
				c.results = c.results[1:]
				c.step(e)
			default:
				c.step()
			}
		}
		for i := range c.hops {
			for len(c.hops[i]) > 0 {
				c.deliver(i)
			}
			// Releases that were lost with a stream are made up for.
			if have := len(c.stages[i].pages); have > c.s.Stats().Held {
				t.Fatalf("seed %d: stage %d has %d pages, the scheduler %d", seed, i, have, c.s.Stats().Held)
			}
		}
		needed := 0
		for i, log := range prompts {
			id := c.names[i]
			want := slices.Clone(log)
			for range tokens {
				want = append(want, after(want))
			}
			if !slices.Equal(c.logs[id], want) {
				t.Fatalf("seed %d: %s is %v, want %v", seed, id, c.logs[id], want)
			}
			needed += stages * len(want)
		}
		// Chunks of prompts, draft tokens and rows in flight are computed again, up to a few batches a break.
		// All of what is cached may be replayed after a loss.
		if limit := 2*needed + (c.breaks+c.losses*4)*stages*60; c.rows > limit {
			t.Errorf("seed %d: %d rows were computed for logs of %d after %d breaks", seed, c.rows, needed, c.breaks)
		}
		total, breaks, losses, again = total+c.rows, breaks+c.breaks, losses+c.losses, again+c.again
		chained += c.chained
	}
	if chained < 100 {
		t.Errorf("only %d windows were sent behind others", chained)
	}
	t.Logf(
		"%d breaks, %d stages lost, %d rows, %d of them in replays, %d chained windows",
		breaks,
		losses,
		total,
		again,
		chained,
	)
}
