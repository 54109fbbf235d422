package session_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/session"
)

// plainSlide is what Slide stands for, token by token: a list that is cut down whenever it is full.
type plainSlide struct {
	session.Slide
	seen    []int32 // what the model sees
	at      []int   // the positions of these in the log
	n       int     // tokens so far
	dropped map[int]bool
}

func (p *plainSlide) push(id int32) {
	p.seen, p.at = append(p.seen, id), append(p.at, p.n)
	p.n++
	if len(p.seen) < p.Length {
		return
	}
	cut := len(p.seen) - p.Window
	for _, at := range p.at[p.Sinks:cut] {
		p.dropped[at] = true
	}
	p.seen = append(slices.Clone(p.seen[:p.Sinks]), p.seen[cut:]...)
	p.at = append(slices.Clone(p.at[:p.Sinks]), p.at[cut:]...)
}

func TestSlide_EqualsAListThatIsCutWheneverItIsFull(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	slides := 0
	for round := range 400 {
		length := 2 + r.IntN(40)
		sinks := r.IntN(length - 1)
		s := session.Slide{Length: length, Sinks: sinks, Window: 1 + r.IntN(length-sinks-1+1)}
		if err := s.Check(); err != nil {
			if s.Window < length-sinks {
				t.Fatalf("round %d: %+v: %v", round, s, err)
			}
			continue
		}
		plain := &plainSlide{Slide: s, dropped: map[int]bool{}}
		var log []int32
		for n := 1; n <= 5*length; n++ {
			id := r.Int32N(1000)
			before := len(plain.dropped)
			log = append(log, id)
			plain.push(id)
			if got := s.View(log); !slices.Equal(got, plain.seen) || len(got) != s.Seen(n) || len(got) >= length {
				t.Fatalf("%+v, %d tokens: sees %v, want %v", s, n, got, plain.seen)
			}
			d := s.Dropped(n)
			if d.Count != len(plain.dropped) {
				t.Fatalf("%+v, %d tokens: %d dropped, want %d", s, n, d.Count, len(plain.dropped))
			}
			for at := d.First; at < d.First+d.Count; at++ {
				if !plain.dropped[at] {
					t.Fatalf("%+v, %d tokens: position %d is said to be dropped", s, n, at)
				}
			}
			span, slid := s.Slid(n)
			if slid != (len(plain.dropped) > before) || span != d {
				t.Fatalf("%+v, %d tokens: slid %v %v", s, n, span, slid)
			}
			if slid {
				slides++
			}
			// A token keeps its place in the whole log: that of the view, plus what was dropped.
			if last := s.Seen(n) - 1 + d.Count; last != n-1 {
				t.Fatalf("%+v: the last of %d tokens has place %d", s, n, last)
			}
		}
	}
	if slides < 1000 {
		t.Errorf("only %d slides", slides)
	}
}

func TestSlide_ZeroValueDropsNothing(t *testing.T) {
	var s session.Slide
	if s.On() || s.Dropped(1<<20) != (session.Span{}) || s.Seen(7) != 7 ||
		!slices.Equal(s.View([]int32{1, 2, 3}), []int32{1, 2, 3}) {
		t.Errorf("%+v drops tokens", s)
	}
}

func TestSlide_Check_RefusesWhatCannotSlide(t *testing.T) {
	for _, s := range []session.Slide{
		{}, {Length: 1, Window: 1}, {Length: 8, Sinks: -1, Window: 1}, {Length: 8, Sinks: 4},
		{Length: 8, Sinks: 8, Window: 1},
		{Length: 8, Sinks: 4, Window: 4}, {Length: 8, Sinks: 4, Window: 1 << 62},
	} {
		if s.Check() == nil {
			t.Errorf("%+v is accepted", s)
		}
	}
	for _, s := range []session.Slide{{2, 0, 1}, {8, 4, 3}, {8192, 4, 4094}} {
		if err := s.Check(); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestMiddle_KeepsBothEnds(t *testing.T) {
	for n := range 40 {
		for budget := range 40 {
			for keep := range 40 {
				span, ok := session.Middle(n, budget, keep)
				switch {
				case n <= budget:
					if !ok || span != (session.Span{}) {
						t.Fatalf("%d tokens within %d: %v %v", n, budget, span, ok)
					}
				case keep >= budget:
					if ok {
						t.Fatalf("%d tokens, budget %d, keep %d: %v", n, budget, keep, span)
					}
				case !ok || n-span.Count != budget || span.First < keep || span.First+span.Count >= n:
					t.Fatalf("%d tokens, budget %d, keep %d: %v %v", n, budget, keep, span, ok)
				case keep == 0 && max(span.First, n-span.First-span.Count)-
					min(span.First, n-span.First-span.Count) > 1:
					t.Fatalf("%d tokens, budget %d: %v is not the middle", n, budget, span)
				}
			}
		}
	}
}

func TestCompose_DropsWhatBothDrop(t *testing.T) {
	log := []int{0, 1, 2, 3, 4, 5, 6, 7}
	without := func(log []int, s session.Span) []int {
		return slices.Concat(log[:s.First], log[s.First+s.Count:])
	}
	spans := func(n int, each func(s session.Span)) {
		for first := range n + 1 {
			for count := range n - first + 1 {
				each(session.Span{First: first, Count: count})
			}
		}
	}
	spans(len(log), func(first session.Span) {
		spans(len(log)-first.Count, func(then session.Span) {
			want := without(without(log, first), then)
			got := log
			list := session.Compose(first, then)
			for i, s := range slices.Backward(list) {
				got = without(got, s)
				if i > 0 && list[i-1].First+list[i-1].Count >= s.First {
					t.Errorf("%v then %v: %v is not in order", first, then, list)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%v then %v: %v leaves %v, want %v", first, then, list, got, want)
			}
		})
	})
}

func TestTurns_WholeTurnsAreDropped(t *testing.T) {
	for _, c := range []struct {
		roles  []string
		system int
		drops  []session.Span
	}{
		{[]string{"user"}, 0, nil},
		{[]string{"system"}, 1, nil},
		{[]string{"system", "user", "assistant", "user"}, 1, []session.Span{{1, 2}}},
		{[]string{"user", "assistant", "user", "assistant", "user"}, 0, []session.Span{{0, 2}, {0, 4}}},
		{[]string{
			"system", "developer", "assistant", "user", "assistant", "tool", "assistant", "user", "user", "assistant",
			"user"}, 2, []session.Span{{2, 1}, {2, 5}, {2, 8}}},
		{[]string{"user", "system", "user"}, 0, []session.Span{{0, 2}}},
	} {
		turns := session.ReadTurns(c.roles)
		if turns.System != c.system || turns.Droppable() != len(c.drops) {
			t.Errorf("%v: %d system messages, %d turns may go", c.roles, turns.System, turns.Droppable())
			continue
		}
		for i, want := range c.drops {
			if got := turns.Dropped(i + 1); got != want {
				t.Errorf("%v: %d turns are %v, want %v", c.roles, i+1, got, want)
			}
		}
		if turns.Dropped(0) != (session.Span{}) || turns.Dropped(len(c.drops)+1) != (session.Span{}) {
			t.Errorf("%v: turns are dropped that may not", c.roles)
		}
	}
}

func TestFewest_FindsTheBorder(t *testing.T) {
	for most := 1; most < 70; most++ {
		for border := 1; border <= most+2; border++ {
			asked := 0
			got, err := session.Fewest(most, func(k int) (bool, error) {
				asked++
				return k >= border, nil
			})
			if err != nil || got != min(border, most) || asked > 7 {
				t.Fatalf("%d of %d: %d after %d questions, %v", border, most, got, asked, err)
			}
		}
	}
	failed := errors.New("failed")
	if _, err := session.Fewest(9, func(int) (bool, error) { return false, failed }); !errors.Is(err, failed) {
		t.Error(err)
	}
}

func TestCut_FindsTheRunThatIsMissing(t *testing.T) {
	prompt := []uint32{1, 2, 3, 4, 5, 6}
	for first := range len(prompt) + 1 {
		for count := range len(prompt) - first + 1 {
			short := slices.Concat(prompt[:first], prompt[first+count:])
			if got, ok := session.Cut(prompt, short); !ok || got.Count != count {
				t.Errorf("%d from %d: %v %v", count, first, got, ok)
			}
		}
	}
	for _, short := range [][]uint32{{1, 9, 6}, {1, 2, 3, 4, 5, 6, 7}} {
		if got, ok := session.Cut(prompt, short); ok {
			t.Errorf("%v: %v", short, got)
		}
	}
}

// The model sees the first tokens and the latest ones.
func ExampleSlide() {
	s := session.Slide{Length: 8, Sinks: 2, Window: 3}
	var log []int32
	for id := range int32(12) {
		log = append(log, id)
		if dropped, slid := s.Slid(len(log)); slid {
			fmt.Println("dropped", dropped.Count, "from", dropped.First, "on, the model sees", s.View(log))
		}
	}
	// Output:
	// dropped 3 from 2 on, the model sees [0 1 5 6 7]
	// dropped 6 from 2 on, the model sees [0 1 8 9 10]
}
