package cuda

import (
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kernel/cuda/driver"
)

// A decode step is launched as one graph. The first step of a kind records its operations: they are not put into the
// queue but into a list, which then runs once while the stream is captured. A later step of the kind brings the tables
// up to date, which lie where the graph reads them, and launches the graph. What differs between steps of a kind is in
// those tables alone: pages, positions, sines and cosines, products of adapters. A graph is not used if anything that
// it reads has moved.
//
// Only the operations of a step know the products of its adapters. So if the rows have other adapters than those that
// the graph's table is of, the operations are recorded again, for the table alone (kernel.Step.Adapters).
//
// A graph holds launches and copies within the device. An operation that allocates, or that copies between host and
// device, is refused; a step that has one is launched kernel by kernel, as is every step of its kind after it. So is a
// step of which the driver makes no graph.

const (
	stepRows   = 64 // rows of a step, at most
	keptGraphs = 32 // of a stage
)

// refusal says what a graph cannot hold. Operations panic with it while they are recorded.
type refusal struct{ what string }

func (r *refusal) Error() string { return "a graph cannot hold " + r.what }

// recording takes the operations of a step. Its methods do nothing if it is nil.
type recording struct {
	list   []func(w *worker) error
	used   map[any]bool // tables that operations of the list read
	rotary []*kernel.Rotary
	perKV  []int // of the strips
	lows   []*lowSite
	keep   []any // memory that has to stay
}

// refuse panics while operations are recorded.
func (r *recording) refuse(what string) {
	if r != nil {
		panic(&refusal{what})
	}
}

// changes is called before a table is written. All tables are written before the list runs, so no operation of the list
// may read what was there before.
func (r *recording) changes(table any) {
	if r != nil && r.used[table] {
		r.refuse("two contents of a table")
	}
}

func (r *recording) uses(table any) {
	if r != nil {
		r.used[table] = true
	}
}

// rotates, strips and keeps note which tables a step brings up to date, and what must not be freed.
func (r *recording) rotates(of *kernel.Rotary) {
	if r != nil && !slices.Contains(r.rotary, of) {
		r.rotary = append(r.rotary, of)
	}
}

func (r *recording) strips(perKV int) {
	if r != nil && !slices.Contains(r.perKV, perKV) {
		r.perKV = append(r.perKV, perKV)
	}
}

func (r *recording) keeps(memory any) {
	if r != nil {
		r.keep = append(r.keep, memory)
	}
}

// stepKind is what the launches of a step depend on beside the places of its tables.
type stepKind struct {
	of                           any // as in kernel.Step
	rows, chunks, stride, layers int
	pages                        kernel.KVType
	length                       int
}

// stepGraph is the graph of a kind of steps.
type stepGraph struct {
	kind    stepKind
	refused bool // the kind has no graph
	graph   driver.Graph
	rotary  []*kernel.Rotary
	perKV   []int
	lows    []*lowSite
	keep    []any
	places  []driver.Address
	work    int // as workMade

	adapters any     // of the step that low is of
	low      []int32 // the tables of lows
}

// graphs are those of a stage. They are freed when its steps are unreachable.
type graphs struct {
	mu  sync.Mutex
	all []*stepGraph // the last used is the last
}

// steps implements kernel.Steps.
type steps struct {
	set    *Set
	graphs *graphs
}

// Steps returns the graphs of a stage.
func (s *Set) Steps() kernel.Steps[float32] {
	out := &steps{s, &graphs{}}
	runtime.AddCleanup(out, s.freeGraphs, out.graphs)
	return out
}

// Graphs returns how many graphs were made, and how many steps were launched as one that was there.
func (s *Set) Graphs() (made, played int64) { return s.captures.Load(), s.plays.Load() }

// freeGraphs frees graphs behind the steps that were launched before.
func (c *core) freeGraphs(g *graphs) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.all {
		c.freeGraph(e)
	}
	g.all = nil
}

func (c *core) freeGraph(e *stepGraph) {
	if e.graph != 0 {
		c.send(func(w *worker) error { return w.FreeGraph(e.graph) })
	}
}

// Run runs a step.
func (s *steps) Run(step kernel.Step[float32], body func(set kernel.Set[float32])) (played bool) {
	if t := s.table(&step); t != nil {
		if done, played := s.run(t, &step, body); done {
			return played
		}
	}
	body(s.set)
	return false
}

// table returns the table of a step's pages, or nil if the step cannot be a graph.
func (s *steps) table(step *kernel.Step[float32]) *batchTable {
	if s.set.noGraphs || len(step.Spans) == 0 || len(step.Spans) > stepRows ||
		slices.ContainsFunc(step.Spans, func(s kernel.Span[float32]) bool { return s.Rows != 1 }) {
		return nil
	}
	if tables := batchTables("step", step.Spans); len(tables) == 1 {
		return tables[0]
	}
	return nil
}

// run launches the graph of a step, or makes it first. done says that the step has run.
func (s *steps) run(t *batchTable, step *kernel.Step[float32], body func(set kernel.Set[float32])) (done, played bool) {
	d := s.set.device
	defer d.lockTables()()
	s.graphs.mu.Lock()
	defer s.graphs.mu.Unlock()
	kind := stepKind{step.Kind, t.rows, roundUp(t.chunks()), t.stride(), len(t.pages[0]), t.kind, t.length}
	e := s.graphs.find(kind)
	if e != nil && e.refused {
		return false, false
	}
	if e != nil && s.adapt(e, step, body) && slices.Equal(d.refresh(e, t, step.Pos), e.places) &&
		e.work == d.workspaceMade() {
		d.plays.Add(1)
		d.core.send(func(w *worker) error { return w.LaunchGraph(e.graph, w.stream) })
		return true, true
	}
	rec, err := s.record(body)
	fresh := &stepGraph{kind: kind, refused: err != nil, rotary: rec.rotary, perKV: rec.perKV, lows: rec.lows,
		keep: rec.keep, adapters: step.Adapters}
	s.graphs.put(d.core, fresh)
	if err != nil {
		return false, false
	}
	var before []*lowSite
	if e != nil {
		before = e.lows
	}
	growLows(fresh.lows, before)
	fresh.low = lowList(fresh.lows, fresh.lows)
	fresh.places, fresh.work = d.refresh(fresh, t, step.Pos), d.workspaceMade()
	d.core.do(func(w *worker) error {
		if fresh.graph, err = w.capture(rec.list); err != nil && !driver.Sticky(err) {
			fresh.refused = true // also if the driver makes no graph of it
			for _, f := range rec.list {
				if err := f(w); err != nil {
					return err
				}
			}
			return nil
		}
		if err != nil {
			return err
		}
		d.captures.Add(1)
		return w.LaunchGraph(fresh.graph, w.stream)
	})
	return true, false
}

// record returns the operations of a step, and what was refused.
func (s *steps) record(body func(set kernel.Set[float32])) (*recording, error) {
	rec := &recording{used: map[any]bool{}}
	err := recorded(func() {
		body(&Set{scope: &scope{&device{s.set.core, rec}, &holding{}}, kv: s.set.kv, bf16: s.set.bf16})
	})
	return rec, err
}

// adapt makes the tables of a graph's low-rank products those of a step, and reports whether the graph has room for
// them. The caller holds tables.mu.
func (s *steps) adapt(e *stepGraph, step *kernel.Step[float32], body func(set kernel.Set[float32])) bool {
	if e.adapters == step.Adapters {
		return true
	}
	rec, err := s.record(body)
	if err != nil || !lowsFit(e.lows, rec.lows) {
		return false
	}
	e.adapters, e.low = step.Adapters, lowList(e.lows, rec.lows)
	return true
}

// refresh brings the tables of a graph up to date and returns where they are. The caller holds tables.mu.
func (d *device) refresh(e *stepGraph, t *batchTable, pos []int32) (places []driver.Address) {
	places = append(places, d.holdPages(t), d.holdList(&d.tables.rows, t.list()))
	for _, perKV := range e.perKV {
		list := t.strips(perKV)
		places = append(places, d.holdList(&d.tables.strips, list.list()))
	}
	for _, r := range e.rotary {
		sin, cos := d.holdRotation(r, pos)
		places = append(places, sin, cos)
	}
	if len(e.low) > 0 {
		at := d.holdList(&d.tables.lows, e.low)
		places = append(places, at)
		for _, site := range e.lows {
			site.at = at
			at += driver.Address(4 * lowInts * site.room)
		}
	}
	return places
}

// workspaceMade returns how often the workspace has moved.
func (c *core) workspaceMade() int {
	c.workMu.Lock()
	defer c.workMu.Unlock()
	return c.workMade
}

// recorded runs f, which records operations, and returns what was refused.
func recorded(f func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *refusal:
			err = r
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

// find returns the graph of a kind, or nil.
func (g *graphs) find(kind stepKind) *stepGraph {
	i := slices.IndexFunc(g.all, func(e *stepGraph) bool { return e.kind == kind })
	if i < 0 {
		return nil
	}
	e := g.all[i]
	g.all = append(slices.Delete(g.all, i, i+1), e)
	return e
}

// put adds a graph, in the place of the one of its kind, or of the one that was not used for the longest time.
func (g *graphs) put(c *core, e *stepGraph) {
	drop := slices.IndexFunc(g.all, func(other *stepGraph) bool { return other.kind == e.kind })
	if drop < 0 && len(g.all) == keptGraphs {
		drop = 0
	}
	if drop >= 0 {
		c.freeGraph(g.all[drop])
		g.all = slices.Delete(g.all, drop, drop+1)
	}
	g.all = append(g.all, e)
}

// capture makes a graph of operations. If there is an error, such as a *refusal, none of them has run.
func (w *worker) capture(list []func(w *worker) error) (driver.Graph, error) {
	if err := w.BeginCapture(w.stream); err != nil {
		return 0, err
	}
	w.capturing = true
	var failed error
	for _, f := range list {
		if failed = f(w); failed != nil {
			break
		}
	}
	w.capturing = false
	graph, err := w.EndCapture(w.stream)
	if failed == nil {
		return graph, err
	}
	if err == nil {
		err = w.FreeGraph(graph)
	}
	if err != nil {
		return 0, fmt.Errorf("%w, after %w", err, failed)
	}
	return 0, failed
}
