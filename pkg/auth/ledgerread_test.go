package auth_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestLedger_RefusesAReportByName(t *testing.T) {
	const caller = "YWJjZGVmZ2hpamtsbW5vcA"
	good := auth.Report{Version: 1, Router: "b", Callers: []auth.Usage{{Caller: caller, Period: 7, Requests: 5,
		RequestsMissing: 5, Tokens: 100, TokensMissing: 100}}}
	text := func(change func(*auth.Report)) []byte {
		r := good
		r.Callers = append([]auth.Usage{}, good.Callers...)
		change(&r)
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, c := range map[string]struct {
		text  []byte
		field string
	}{
		"good":             {text(func(*auth.Report) {}), ""},
		"empty":            {nil, "byte 0"},
		"not JSON":         {[]byte("budget"), "byte"},
		"more behind":      {append(text(func(*auth.Report) {}), '1'), "more behind"},
		"another field":    {[]byte(`{"version":1,"router":"b","callers":[],"x":1}`), "x"},
		"another version":  {text(func(r *auth.Report) { r.Version = 2 }), "version"},
		"another router":   {text(func(r *auth.Report) { r.Router = "c" }), "router"},
		"no router":        {text(func(r *auth.Report) { r.Router = "" }), "router"},
		"long router":      {text(func(r *auth.Report) { r.Router = strings.Repeat("r", 65) }), "router"},
		"caller":           {text(func(r *auth.Report) { r.Callers[0].Caller = "ada" }), "caller"},
		"odd base64":       {text(func(r *auth.Report) { r.Callers[0].Caller = caller[:21] + "B" }), "caller"},
		"no period":        {text(func(r *auth.Report) { r.Callers[0].Period = 0 }), "period"},
		"requests":         {text(func(r *auth.Report) { r.Callers[0].Requests = -1 }), "requests"},
		"tokens":           {text(func(r *auth.Report) { r.Callers[0].Tokens = 1<<53 + 1 }), "tokens"},
		"requests missing": {text(func(r *auth.Report) { r.Callers[0].RequestsMissing = -1 }), "requests_missing"},
		"tokens missing": {text(func(r *auth.Report) { r.Callers[0].TokensMissing = auth.MaxBudget + 1 }),
			"tokens_missing"},
		"twice":    {text(func(r *auth.Report) { r.Callers = append(r.Callers, r.Callers[0]) }), "callers[1]"},
		"too many": {text(func(r *auth.Report) { r.Callers = make([]auth.Usage, 2049) }), "callers"},
		"too long": {make([]byte, auth.MaxReport+1), "bytes"},
	} {
		l := auth.NewLedger("a", nil)
		other := text(func(r *auth.Report) { r.Router = "other" })
		refused := l.Read(map[string][]byte{"b": c.text, "other": other})
		err := refused["b"]
		if (err == nil) != (c.field == "") || err != nil && !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: %v", name, err)
		}
		if want := map[bool]int{true: 2, false: 1}[c.field == ""]; refused["other"] != nil || l.Routers() != want {
			t.Errorf("%s: %d routers, %v: a bad report costs another one", name, l.Routers(), refused["other"])
		}
	}
	l := auth.NewLedger("a", nil)
	many := map[string][]byte{}
	for i := range 200 {
		id := fmt.Sprint("r", i)
		many[id] = text(func(r *auth.Report) { r.Router = id })
	}
	if refused := l.Read(many); l.Routers() != 128 || len(refused) != 200-128 {
		t.Errorf("%d routers, %d refused", l.Routers(), len(refused))
	}
	l.Read(nil) // they are gone, and make room
	if refused := l.Read(map[string][]byte{"b": text(func(*auth.Report) {})}); l.Routers() != 1 || len(refused) > 0 {
		t.Errorf("%d routers, %v", l.Routers(), refused)
	}
}

// TestLedger_AReportGivesNoMoreThanItHasTaken lets a router report what makes no sense.
func TestLedger_AReportGivesNoMoreThanItHasTaken(t *testing.T) {
	f := newFleet(t, 2)
	const limit = 1000
	own := f.meter(0, "ada", 0, limit)
	if _, err := own.Reserve(600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.meter(1, "ada", 0, limit).Reserve(100); err != nil {
		t.Fatal(err)
	}
	f.post(1)
	var r auth.Report
	if err := json.Unmarshal(f.board["router-1"], &r); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(8, 9))
	for range 2000 {
		u := &r.Callers[0]
		u.Tokens = random.Int64N([]int64{2, 2000, 1 << 53}[random.IntN(3)])
		u.TokensMissing = random.Int64N([]int64{2, 2000, auth.MaxBudget}[random.IntN(3)])
		if random.IntN(10) == 0 {
			u.Period++
		}
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if refused := f.routers[0].ledger.Read(map[string][]byte{"router-1": text}); len(refused) > 0 {
			t.Fatal(refused)
		}
		if _, tokens := own.State(); tokens.Remaining > 400 {
			t.Fatalf("%s gives the caller %d tokens", text, tokens.Remaining)
		}
	}
}

func TestLedger_ReportsAreBounded(t *testing.T) {
	f := newFleet(t, 1)
	const callers = 5000
	for i := range callers {
		f.meter(0, fmt.Sprint("caller ", i), 0, 60).Charge(30)
	}
	text, left, err := f.routers[0].ledger.Report()
	if err != nil || left != callers-2048 || len(text) > auth.MaxReport {
		t.Fatalf("%d callers left of a report of %d bytes, %v", left, len(text), err)
	}
	first, err := auth.ParseReport(text)
	if err != nil {
		t.Fatal(err)
	}
	f.at += 10 * time.Second
	for i := range callers { // all of them go on
		f.meter(0, fmt.Sprint("caller ", i), 0, 60).Charge(5)
	}
	if text, _, err = f.routers[0].ledger.Report(); err != nil {
		t.Fatal(err)
	}
	next, err := auth.ParseReport(text)
	if err != nil {
		t.Fatal(err)
	}
	for i, u := range next.Callers {
		if before := first.Callers[i]; before.Caller != u.Caller || before.Period != u.Period || u.Tokens != 35 {
			t.Fatalf("callers[%d] is %+v after %+v: who is in a report stays there", i, u, before)
		}
	}
	// The longest report that there can be is read again.
	for i := range next.Callers {
		next.Callers[i] = auth.Usage{Caller: next.Callers[i].Caller, Period: 1<<64 - 1, Requests: 1 << 53,
			Tokens: 1 << 53, RequestsMissing: auth.MaxBudget, TokensMissing: auth.MaxBudget}
	}
	next.Router = strings.Repeat("r", 64)
	if text, err = json.Marshal(next); err != nil {
		t.Fatal(err)
	}
	if _, err := auth.ParseReport(text); err != nil {
		t.Error(err)
	}
}

func TestKeyring_SharesItsBudgets(t *testing.T) {
	now := func() time.Time { return start }
	k, secret := newKey(t, func(k *auth.Key) { k.Requests = 3 })
	var ledgers []*auth.Ledger
	var meters []*auth.Meter
	for _, id := range []string{"a", "b"} {
		l := auth.NewLedger(id, now)
		p, err := auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{Now: now, Ledger: l}).Authenticate(secret)
		if err != nil {
			t.Fatal(err)
		}
		ledgers, meters = append(ledgers, l), append(meters, p.Meter())
	}
	for range 2 {
		if err := meters[0].Begin(); err != nil {
			t.Fatal(err)
		}
	}
	text, _, err := ledgers[0].Report()
	if err != nil {
		t.Fatal(err)
	}
	if refused := ledgers[1].Read(map[string][]byte{"a": text}); len(refused) > 0 {
		t.Fatal(refused)
	}
	if err := meters[1].Begin(); err != nil {
		t.Fatal(err)
	}
	if err := meters[1].Begin(); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("the budget is used up at the other router: %v", err)
	}
	if strings.Contains(string(text), k.ID) {
		t.Errorf("the report has the id of the key: %s", text)
	}
}

func FuzzLedger_Read(f *testing.F) {
	f.Add([]byte(`{"version":1,"router":"b","callers":[{"caller":"YWJjZGVmZ2hpamtsbW5vcA","period":1,"tokens":5}]}`),
		[]byte(`{"version":1,"router":"b","callers":[]}`))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		l := auth.NewLedger("a", func() time.Time { return start })
		meters := auth.NewMeters(func() time.Time { return start })
		meters.Share(l)
		m, err := meters.Of("ada", 10, 100)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Begin(); err != nil {
			t.Fatal(err)
		}
		for _, text := range [][]byte{one, two, one} {
			r, err := auth.ParseReport(text)
			refused := l.Read(map[string][]byte{"b": text})["b"]
			if (refused == nil) != (err == nil && r.Router == "b") {
				t.Errorf("%v and %v", refused, err)
			}
			if requests, _ := m.State(); requests.Remaining > 9 {
				t.Errorf("a report gives the caller requests: %+v", requests)
			}
			if err != nil {
				continue
			}
			again, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := auth.ParseReport(again); err != nil {
				t.Errorf("%s: %v", again, err)
			}
		}
	})
}
