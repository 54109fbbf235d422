package auth_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// fleet is several routers with clocks of their own that share budgets over a board with delays, in virtual time.
type fleet struct {
	t       *testing.T
	at      time.Duration // since the start
	routers []*member
	board   map[string][]byte
}

// member is a router of a fleet.
type member struct {
	id     string
	skew   time.Duration // of its clock
	ledger *auth.Ledger
	meters *auth.Meters
	cut    bool // from the board
}

func newFleet(t *testing.T, n int) *fleet {
	f := &fleet{t: t, board: map[string][]byte{}}
	for i := range n {
		f.routers = append(f.routers, nil)
		f.restart(i, fmt.Sprintf("router-%d", i))
	}
	return f
}

// restart replaces a router by a new process.
func (f *fleet) restart(i int, id string) {
	m := &member{id: id, skew: time.Duration(i*i*i) * time.Hour}
	now := func() time.Time { return start.Add(m.skew + f.at) }
	m.ledger, m.meters = auth.NewLedger(id, now), auth.NewMeters(now)
	m.meters.Share(m.ledger)
	f.routers[i] = m
	f.read(i)
}

// meter returns the meter of a caller at a router.
func (f *fleet) meter(i int, id string, requests, tokens int64) *auth.Meter {
	f.t.Helper()
	m, err := f.routers[i].meters.Of(id, requests, tokens)
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

func (f *fleet) post(i int) {
	f.t.Helper()
	m := f.routers[i]
	if m.cut {
		return
	}
	text, left, err := m.ledger.Report()
	if err != nil || left > 0 {
		f.t.Fatalf("%d left, %v", left, err)
	}
	if text == nil {
		delete(f.board, m.id)
	} else {
		f.board[m.id] = text
	}
}

func (f *fleet) read(i int) {
	f.t.Helper()
	if m := f.routers[i]; !m.cut {
		if refused := m.ledger.Read(f.board); len(refused) > 0 {
			f.t.Fatalf("%v", refused)
		}
	}
}

// exchange lets all routers post and then read.
func (f *fleet) exchange() {
	f.t.Helper()
	for i := range f.routers {
		f.post(i)
	}
	for i := range f.routers {
		f.read(i)
	}
}

// left returns what remains of a caller's budgets at a router.
func (f *fleet) left(i int, id string, requests, tokens int64) (int64, int64) {
	f.t.Helper()
	r, t := f.meter(i, id, requests, tokens).State()
	return r.Remaining, t.Remaining
}

func TestLedger_SharesWhatWasUsed(t *testing.T) {
	f := newFleet(t, 3)
	const requests, tokens = 60, 6000
	want := func(router int, r, k int64) {
		t.Helper()
		if gotR, gotK := f.left(router, "ada", requests, tokens); gotR != r || gotK != k {
			t.Errorf("router %d has %d requests and %d tokens, want %d and %d", router, gotR, gotK, r, k)
		}
	}
	first := f.meter(0, "ada", requests, tokens)
	if err := first.Begin(); err != nil {
		t.Fatal(err)
	}
	settle, err := first.Reserve(4000)
	if err != nil {
		t.Fatal(err)
	}
	want(1, 60, 6000)
	f.exchange()
	for i := range 3 {
		want(i, 59, 2000)
	}
	f.exchange() // the same reports again
	f.routers[1].ledger.Read(f.board)
	want(1, 59, 2000)
	if _, err := f.meter(2, "ada", requests, tokens).Reserve(2001); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("another router lets in what is used up: %v", err)
	} else if wait := err.(*fault.Error).RetryAfter; wait != 10*time.Millisecond {
		t.Errorf("the wait for one token of 100 a second is %v", wait)
	}
	settle(1000)
	f.exchange()
	for i := range 3 {
		want(i, 59, 5000)
	}
	// A router that comes later, and one whose caller comes later, know it too.
	f.restart(1, "router-1b")
	want(1, 59, 5000)
	f.at += 10 * time.Second // 10 requests and 1000 tokens
	for i := range 3 {
		want(i, 60, 6000)
	}
	f.exchange()
	if len(f.board) > 0 {
		t.Errorf("the budgets are full, and the reports are %s", f.board)
	}
}

func TestLedger_ARouterThatJoinsCountsEachUseOnce(t *testing.T) {
	f := newFleet(t, 2)
	const limit = 60
	use := func(m *auth.Meter, n int) {
		t.Helper()
		for range n {
			if err := m.Begin(); err != nil {
				t.Fatal(err)
			}
		}
	}
	use(f.meter(0, "ada", limit, 0), 5)
	use(f.meter(1, "ada", limit, 0), 6)
	f.exchange()
	f.exchange() // now both report that 11 are missing
	now := func() time.Time { return start.Add(f.at) }
	l, meters := auth.NewLedger("late", now), auth.NewMeters(now)
	meters.Share(l)
	m, err := meters.Of("ada", limit, 0)
	if err != nil {
		t.Fatal(err)
	}
	use(m, 3) // before it has read anything
	if refused := l.Read(f.board); len(refused) > 0 {
		t.Fatal(refused)
	}
	if requests, _ := m.State(); requests.Remaining != limit-14 {
		t.Errorf("%d requests remain, want %d", requests.Remaining, limit-14)
	}
	use(f.meter(0, "ada", limit, 0), 2)
	f.post(0)
	l.Read(f.board)
	if requests, _ := m.State(); requests.Remaining != limit-16 {
		t.Errorf("%d requests remain, want %d", requests.Remaining, limit-16)
	}
}

// offer is a request that comes to a router.
type offer struct {
	at     time.Duration
	router int
}

// offers returns requests of a caller that come at random, faster than its budget allows, in calm and busy times.
func offers(r *rand.Rand, routers int, length time.Duration, perMinute float64) []offer {
	var out []offer
	for at := time.Duration(0); at < length; {
		rate := perMinute * []float64{0.2, 1, 4}[int(at/(97*time.Second))%3]
		at += time.Duration(r.ExpFloat64() / rate * float64(time.Minute))
		out = append(out, offer{at, r.IntN(routers)})
	}
	return out
}

// TestLedger_AdmitsNoMoreThanOneMeterThatSeesAll compares shared budgets with the oracle: one meter to which all
// requests come. What all routers let in exceeds that by at most what the others of each let in during an interval.
func TestLedger_AdmitsNoMoreThanOneMeterThatSeesAll(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 12
	}
	const interval, delay = time.Second, 300 * time.Millisecond
	worst := 0.0
	for seed := range seeds {
		random := rand.New(rand.NewPCG(uint64(seed), 23))
		n, limit := 2+random.IntN(4), []int64{3, 60, 1000}[random.IntN(3)]
		f := newFleet(t, n)
		oracle := auth.NewMeter(limit, 0, func() time.Time { return start.Add(f.at) })
		var shared, alone int64
		var admitted []time.Duration // in order
		post, read := make([]time.Duration, n), make([]time.Duration, n)
		for i := range n {
			post[i] = time.Duration(random.Int64N(int64(interval)))
			read[i] = time.Duration(random.Int64N(int64(delay)))
		}
		window := 0 // the most that was let in while reports were on their way
		step := func(until time.Duration) {
			for {
				next, which, reads := until, -1, false
				for i := range n {
					if post[i] < next {
						next, which, reads = post[i], i, false
					}
					if read[i] < next {
						next, which, reads = read[i], i, true
					}
				}
				f.at = next
				switch {
				case which < 0:
					return
				case reads:
					f.read(which)
					read[which] += delay
				default:
					f.post(which)
					post[which] += interval
				}
			}
		}
		for _, o := range offers(random, n, 10*time.Minute, float64(limit)) {
			step(o.at)
			if oracle.Begin() == nil {
				alone++
			}
			if f.meter(o.router, "ada", limit, 0).Begin() == nil {
				shared++
				admitted = append(admitted, f.at)
				from := len(admitted) - 1
				for from > 0 && f.at-admitted[from-1] <= interval+delay {
					from--
				}
				window = max(window, len(admitted)-from)
			}
			// The routers may let in what comes within an interval and a delay, and gain once more what a bucket gains
			// in that time, if it was full at one of them and not at another.
			gain := int64(n-1) * (limit*int64(interval+delay)/int64(time.Minute) + 1)
			if most := alone + int64(window) + gain; shared > most {
				t.Fatalf("seed %d, %d routers, %d a minute: after %v they have let in %d, one meter %d, at most %d "+
					"more", seed, n, limit, f.at, shared, alone, most-alone)
			}
		}
		if alone-shared > limit/10+int64(n) {
			t.Errorf("seed %d, %d routers, %d a minute: they have let in %d, one meter %d", seed, n, limit, shared,
				alone)
		}
		worst = max(worst, float64(shared-alone)/float64(limit))
	}
	t.Logf("at most %.3f budgets more than one meter", worst)
}

// TestLedger_ABurstIsADebt is the worst case: all of a budget is used at every router between two reports.
func TestLedger_ABurstIsADebt(t *testing.T) {
	const n, limit = 4, 60
	f := newFleet(t, n)
	burst := func() (admitted int) {
		for i := range n {
			for f.meter(i, "ada", limit, 0).Begin() == nil {
				admitted++
			}
		}
		return admitted
	}
	if got := burst(); got != n*limit {
		t.Fatalf("%d are let in", got)
	}
	total := n * limit
	for f.at = time.Second; f.at <= 10*time.Minute; f.at += time.Second {
		f.exchange()
		total += burst()
		if f.at < (n-1)*time.Minute && total > n*limit {
			t.Fatalf("%d are let in after %v, before the debt is paid", total, f.at)
		}
	}
	if most := limit + 10*limit + (n-1)*limit; total > most || total < 10*limit {
		t.Errorf("%d are let in within ten minutes, want at most %d", total, most)
	}
}

func TestLedger_APartitionedRouterLimitsByItselfAndAgreesAfterwards(t *testing.T) {
	f := newFleet(t, 3)
	const limit = 60
	use := func(i int) bool { return f.meter(i, "ada", limit, 0).Begin() == nil }
	total := 0
	run := func(length time.Duration, routers ...int) (admitted int) {
		for end := f.at + length; f.at < end; f.at += 100 * time.Millisecond {
			for _, i := range routers {
				if use(i) {
					admitted++
				}
			}
			if f.at%time.Second == 0 {
				f.exchange()
			}
		}
		total += admitted
		return admitted
	}
	run(2*time.Minute, 0, 1, 2)
	f.routers[2].cut = true
	// The two that see each other share a budget, and the third one has one.
	if got := run(10*time.Minute, 0, 1, 2); got < 2*9*limit || got > 2*10*limit+3*limit {
		t.Errorf("%d are let in during ten minutes of a partition, want about %d", got, 2*10*limit)
	}
	f.routers[2].cut = false
	f.exchange()
	// What each side let in long ago is no debt of the other one.
	if _, missing := f.meter(2, "ada", limit, 0).State(); missing.Reset > 0 {
		t.Errorf("%+v", missing)
	}
	requests, _ := f.meter(2, "ada", limit, 0).State()
	if requests.Reset > 2*time.Minute+2*time.Second {
		t.Errorf("after the partition the budget is full in %v", requests.Reset)
	}
	before := total
	run(2*time.Minute, 0, 1, 2) // pays what both sides have used
	if got := total - before; got > 2*limit+limit/10 {
		t.Errorf("%d are let in during two minutes after the partition", got)
	}
	if got := run(10*time.Minute, 0, 1, 2); got < 9*limit || got > 10*limit+limit/10 {
		t.Errorf("%d are let in during ten minutes, want %d", got, 10*limit)
	}
}

func TestLedger_RestartedRouters(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 5))
	const n, limit = 3, 120
	f := newFleet(t, n)
	admitted := 0
	const length = 20 * time.Minute
	restarts := 0
	for ; f.at < length; f.at += 100 * time.Millisecond {
		for i := range n {
			if f.meter(i, "ada", limit, 0).Begin() == nil {
				admitted++
			}
		}
		if f.at%time.Second == 0 {
			f.exchange()
		}
		if random.IntN(100) == 0 {
			i := random.IntN(n)
			id := f.routers[i].id
			if restarts++; random.IntN(2) == 0 { // otherwise it comes back under its id
				id = fmt.Sprintf("router-%d-%d", i, restarts)
			}
			if old := f.routers[i].id; old != id && random.IntN(2) == 0 {
				delete(f.board, old) // otherwise its report stays for some time
			}
			f.restart(i, id)
		}
		if len(f.board) > 2*n { // reports of the dead go away
			for id := range f.board {
				alive := false
				for _, m := range f.routers {
					alive = alive || m.id == id
				}
				if !alive {
					delete(f.board, id)
				}
			}
		}
	}
	// Each restart loses at most what the router let in since its last report.
	perSecond := 10 * n
	if most := limit + int(length.Minutes()*limit) + (restarts+n)*perSecond; admitted > most {
		t.Errorf("%d are let in with %d restarts, want at most %d", admitted, restarts, most)
	}
	if least := int(length.Minutes()*limit) * 3 / 4; restarts < 50 || admitted < least {
		t.Errorf("%d are let in with %d restarts, want at least %d", admitted, restarts, least)
	}
	t.Logf("%d of %d are let in with %d restarts", admitted, int(length.Minutes()*limit), restarts)
}
