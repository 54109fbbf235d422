package kvcache_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/kernel"
	"github.com/lamina-mesh/lamina/pkg/kvcache"
)

const pageLen = 4

func newCache(pages int) *kvcache.Cache[float64] {
	return kvcache.New(kvcache.Config{Layers: 2, KVHeads: 1, HeadDim: 1, PageLen: pageLen, Pages: pages},
		kernel.HostOps[float64]{})
}

func openLease(t testing.TB, c *kvcache.Cache[float64], name string) *kvcache.Lease[float64] {
	t.Helper()
	l, _, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTable_ChangesThatDoNotFitAreRefused(t *testing.T) {
	const many = 1 << 20
	for name, test := range map[string]struct {
		from      int
		ids       []uint32
		pos, rows int
		want      fault.Code
	}{
		"a hole before the change":             {3, []uint32{4}, 12, 1, fault.FailedPrecondition},
		"an id out of range":                   {2, []uint32{8}, 8, 1, fault.Invalid},
		"the largest id":                       {2, []uint32{1<<32 - 1}, 8, 1, fault.Invalid},
		"an id twice":                          {2, []uint32{4, 4}, 8, 1, fault.Invalid},
		"an id that the table has":             {2, []uint32{0}, 8, 1, fault.Invalid},
		"a mapped id twice":                    {0, []uint32{0, 1, 0}, 8, 1, fault.Invalid},
		"too short for the rows":               {2, []uint32{4}, 8, 5, fault.Invalid},
		"cut below the rows":                   {1, nil, 4, 1, fault.Invalid},
		"a million entries":                    {2, make([]uint32, many), 8, 1, fault.Invalid},
		"a page below the position, not known": {1, []uint32{5, 6}, 8, 1, fault.FailedPrecondition},
		"a page below the position, released":  {1, []uint32{3, 6}, 8, 1, fault.FailedPrecondition},
		"more than the lease":                  {2, []uint32{4, 5, 6, 7}, 8, 1, fault.Exhausted},
		"position beyond everything":           {2, []uint32{4}, 1<<32 - 1, 1<<32 - 1, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(8)
			l := openLease(t, c, "a")
			held := c.NewSequence() // one page is in use elsewhere
			keep, s := l.NewTable(), l.NewTable()
			for _, err := range []error{held.Reserve(1), keep.Change(0, []uint32{2, 3}, 0, 8), s.Change(0,
				[]uint32{0, 1}, 0, 8)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			l.Release([]uint32{3, 77, 1<<32 - 1, 3})
			s.Extend(8)
			before := c.Used()
			if err := s.Change(test.from, test.ids, test.pos, test.rows); fault.CodeOf(err) != test.want {
				t.Errorf("got %v, want code %v", err, test.want)
			}
			if c.Used() != before || s.Len() != 8 || s.Pages() != 2 {
				t.Errorf("the refusal changed something: %d pages used, was %d; the table has %d pages, %d positions",
					c.Used(), before, s.Pages(), s.Len())
			}
			if err := s.Change(2, []uint32{6}, 8, 1); err != nil {
				t.Errorf("a good change after it: %v", err)
			}
			if err := c.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTable_ReleasedPagesMakeRoomInTheSameChange replaces a released page while the lease is full.
func TestTable_ReleasedPagesMakeRoomInTheSameChange(t *testing.T) {
	c := newCache(3)
	l := openLease(t, c, "a")
	openLease(t, c, "b")
	n, _ := l.Notice()
	l.Acknowledge(n)
	s := l.NewTable() // the lease is 3/2 = 1 page
	if err := s.Change(0, []uint32{2}, 0, 4); err != nil {
		t.Fatal(err)
	}
	if err := s.Change(0, []uint32{1}, 0, 4); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("a second page: %v", err)
	}
	l.Release([]uint32{2})
	if c.Used() != 1 {
		t.Errorf("%d pages are used, want 1 until the table drops it", c.Used())
	}
	if err := s.Change(0, []uint32{1}, 0, 4); err != nil || c.Used() != 1 {
		t.Errorf("a page in place of a released one: %v, %d pages are used", err, c.Used())
	}
}

// model is the plain reference of a lease: maps of ids.
type model struct {
	limit  int
	mapped map[uint32]bool             // whether the id was released
	marks  map[uint32][pageLen]float64 // what was written
	tables map[int][]uint32
	lens   map[int]int
}

func newModel(limit int) *model {
	return &model{limit, map[uint32]bool{}, map[uint32][pageLen]float64{}, map[int][]uint32{}, map[int]int{}}
}

func (m *model) named(id uint32) int {
	n := 0
	for _, table := range m.tables {
		for _, other := range table {
			if other == id {
				n++
			}
		}
	}
	return n
}

// sweep unmaps what was released and is no longer named.
func (m *model) sweep() {
	for id, released := range m.mapped {
		if released && m.named(id) == 0 {
			delete(m.mapped, id)
			delete(m.marks, id)
		}
	}
}

func (m *model) change(table, from int, ids []uint32, pos, rows, pages int) fault.Code {
	old := m.tables[table]
	if from > len(old) {
		return fault.FailedPrecondition
	}
	next := slices.Concat(old[:from], ids)
	if len(next) > pages || len(next)*pageLen < pos+rows ||
		slices.ContainsFunc(ids, func(id uint32) bool { return int(id) >= pages }) {
		return fault.Invalid
	}
	for i, id := range ids { // in this order, since either fault may be found first
		released, ok := m.mapped[id]
		if (from+i)*pageLen < pos && (!ok || released) {
			return fault.FailedPrecondition
		}
		if slices.Contains(next[:from+i], id) {
			return fault.Invalid
		}
	}
	before := model{mapped: maps.Clone(m.mapped), marks: maps.Clone(m.marks)}
	m.tables[table] = next
	for _, id := range ids {
		m.mapped[id] = false
	}
	m.sweep()
	if len(m.mapped) > m.limit {
		m.mapped, m.marks, m.tables[table] = before.mapped, before.marks, old
		return fault.Exhausted
	}
	m.lens[table] = pos
	return fault.Unspecified
}

// TestLease_RandomOperationsAgainstAModel changes, writes, shares, releases and frees at random on two
// leases, and compares every answer and every value with maps of ids.
func TestLease_RandomOperationsAgainstAModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomOperations(t, rand.New(rand.NewPCG(seed, 3))) })
	}
}

func randomOperations(t *testing.T, r *rand.Rand) {
	const pages, tables = 16, 4
	c := newCache(pages)
	leases := []*kvcache.Lease[float64]{openLease(t, c, "a"), openLease(t, c, "b")}
	if n, ok := leases[0].Notice(); !ok || n != pages/2 {
		t.Fatalf("told %d, %v", n, ok)
	}
	leases[0].Acknowledge(pages / 2)
	if n, ok := leases[1].Notice(); !ok || n != pages/2 {
		t.Fatalf("told %d, %v", n, ok)
	}
	models := []*model{newModel(pages / 2), newModel(pages / 2)}
	seqs := [2][tables]*kvcache.Table[float64]{}
	for i, l := range leases {
		for j := range tables {
			seqs[i][j] = l.NewTable()
		}
	}
	mark, codes := 0.0, map[fault.Code]int{}
	for step := range 3000 {
		i, j := r.IntN(2), r.IntN(tables)
		l, m, s := leases[i], models[i], seqs[i][j]
		switch r.IntN(8) {
		case 0:
			s.Free()
			delete(m.tables, j)
			m.lens[j] = 0
			m.sweep()
		case 1:
			ids := []uint32{uint32(r.IntN(pages + 1)), uint32(r.IntN(pages))}
			l.Release(ids)
			for _, id := range ids {
				if _, ok := m.mapped[id]; ok {
					m.mapped[id] = true
				}
			}
			m.sweep()
		case 2:
			n := r.IntN(s.Len() + 2)
			s.Truncate(n)
			m.lens[j] = min(m.lens[j], n)
		case 3, 4: // share a prefix of another table of the lease
			prefix := m.tables[r.IntN(tables)]
			prefix = prefix[:r.IntN(len(prefix)+1)]
			pos := pageLen * len(prefix)
			ids := append(slices.Clone(prefix), uint32(r.IntN(pages)))
			change(t, codes, s, m, j, 0, ids, pos, 1+r.IntN(pageLen))
		default: // grow or replace the end
			from := r.IntN(len(m.tables[j]) + 1)
			if r.IntN(20) == 0 {
				from++
			}
			var ids []uint32
			for range r.IntN(3) {
				ids = append(ids, uint32(r.IntN(pages+1)))
			}
			pos := min(m.lens[j], r.IntN(pageLen*(from+1)+1))
			change(t, codes, s, m, j, from, ids, pos, r.IntN(6))
		}
		if m.lens[j] < len(m.tables[j])*pageLen { // write the next position
			mark++
			pos := m.lens[j]
			for layer := range 2 {
				s.View(layer).Write(pos, []float64{mark + float64(layer)/2}, []float64{-mark}, 1, 1)
			}
			s.Extend(pos + 1)
			m.lens[j]++
			id := m.tables[j][pos/pageLen]
			marks := m.marks[id]
			marks[pos%pageLen] = mark
			m.marks[id] = marks
		}
		compare(t, step, c, models, seqs)
		if t.Failed() {
			return
		}
	}
	for _, code := range []fault.Code{fault.Unspecified, fault.Invalid, fault.FailedPrecondition, fault.Exhausted} {
		if codes[code] < 10 {
			t.Errorf("only %d changes ended with code %v", codes[code], code)
		}
	}
	for _, l := range leases {
		l.Close()
	}
	if err := c.Check(); err != nil || c.Used() != 0 {
		t.Errorf("after all leases were closed: %v, %d pages are used", err, c.Used())
	}
}

func change(t *testing.T, codes map[fault.Code]int, s *kvcache.Table[float64], m *model, table, from int, ids []uint32,
	pos, rows int) {
	t.Helper()
	want := m.change(table, from, ids, pos, rows, 16)
	codes[want]++
	if err := s.Change(from, ids, pos, rows); fault.CodeOf(err) != want {
		t.Errorf("change from %d to %v at %d+%d: %v, want code %v", from, ids, pos, rows, err, want)
	}
}

func compare(t *testing.T, step int, c *kvcache.Cache[float64], models []*model, seqs [2][4]*kvcache.Table[float64]) {
	t.Helper()
	if err := c.Check(); err != nil {
		t.Errorf("step %d: %v", step, err)
	}
	used := 0
	for i, m := range models {
		used += len(m.mapped)
		if got := c.Leases()[i].Used; got != len(m.mapped) {
			t.Errorf("step %d: lease %d has mapped %d pages, want %d", step, i, got, len(m.mapped))
		}
		for j, s := range seqs[i] {
			if s.Len() != m.lens[j] || s.Pages() != len(m.tables[j]) {
				t.Errorf("step %d: table %d/%d has %d positions in %d pages, want %d in %d", step, i, j, s.Len(),
					s.Pages(), m.lens[j], len(m.tables[j]))
				return
			}
			for layer := range 2 {
				view := s.View(layer)
				for pos := range s.Len() {
					want := m.marks[m.tables[j][pos/pageLen]][pos%pageLen]
					k, v := view.Page(pos / pageLen).Keys[pos%pageLen], view.Page(pos / pageLen).Values[pos%pageLen]
					if want != 0 && (k != want+float64(layer)/2 || v != -want) {
						t.Errorf(
							"step %d: table %d/%d layer %d position %d holds %g and %g, want %g",
							step,
							i,
							j,
							layer,
							pos,
							k,
							v,
							want,
						)
					}
				}
			}
		}
	}
	if c.Used() != used {
		t.Errorf("step %d: %d pages are used, want %d", step, c.Used(), used)
	}
}
