package auth_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

func TestMeters_KeepWhatIsUsed(t *testing.T) {
	const most = 1 << 16 // callers
	now := time.Unix(0, 0)
	meters := auth.NewMeters(func() time.Time { return now })
	of := func(id string) (*auth.Meter, error) { return meters.Of(id, 0, 60) }
	if m, err := meters.Of("free", 0, 0); m != nil || err != nil {
		t.Errorf("a caller without limits: %v, %v", m, err)
	}
	first, err := of("first")
	if err != nil {
		t.Fatal(err)
	}
	settle, err := first.Reserve(40)
	if err != nil {
		t.Fatal(err)
	}
	for i := range most - 1 {
		m, err := of(fmt.Sprint("caller ", i))
		if err != nil {
			t.Fatal(err)
		}
		m.Charge(30)
	}
	if _, err := of("one too many"); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("all budgets are used: %v", err)
	}
	if m, err := of("first"); m != first || err != nil {
		t.Errorf("a known caller: %v, %v", m, err)
	}
	now = now.Add(time.Hour) // all are full again, and the first one has a request that runs
	for i := range most - 1 {
		m, err := of(fmt.Sprint("another ", i))
		if err != nil {
			t.Fatal(err)
		}
		m.Charge(30)
	}
	if m, err := of("first"); m != first || err != nil {
		t.Errorf("a caller whose request runs was forgotten: %v, %v", m, err)
	}
	settle(100) // 60 more than it has reserved, which was all that it had
	if _, tokens := first.State(); tokens.Remaining != 0 || tokens.Reset != time.Minute {
		t.Errorf("after the request: %+v", tokens)
	}
	if m, err := meters.Of("first", 5, 90); err != nil || m != first {
		t.Error(err)
	} else if requests, tokens := m.Limits(); requests != 5 || tokens != 90 {
		t.Errorf("the limits are %d and %d", requests, tokens)
	}
}

func TestGuard_MeterOfTheOwnerOfARequest(t *testing.T) {
	now := time.Unix(0, 0)
	clock := func() time.Time { return now }
	k, secret, err := auth.NewKey(auth.Key{Roles: []auth.Role{auth.User}, Tokens: 100}, now)
	if err != nil {
		t.Fatal(err)
	}
	guard := auth.NewGuard(auth.NewKeyring([]auth.Key{k}, auth.KeyringOptions{Now: clock}), "")
	guard.Meters = auth.NewMeters(clock)
	guard.MeterOf("key:"+k.ID, 0, 7).Charge(60) // the limits of this router count
	p, err := guard.Authenticate(auth.Credentials{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	if _, tokens := p.Meter().State(); tokens.Limit != 100 || tokens.Remaining != 40 {
		t.Errorf("the budget of the key: %+v", tokens)
	}
	guard.MeterOf("token:ada@i", 0, 50).Charge(60)
	if _, tokens := guard.MeterOf("token:ada@i", 0, 50).State(); tokens.Limit != 50 || tokens.Remaining != 0 {
		t.Errorf("the budget of another caller: %+v", tokens)
	}
	var none *auth.Guard
	none.MeterOf("key:x", 0, 7).Charge(7)
	if _, tokens := auth.NewGuard(nil, "").MeterOf("key:x", 0, 7).State(); tokens.Limit != 0 {
		t.Errorf("a guard without budgets: %+v", tokens)
	}
}

func FuzzBearer(f *testing.F) {
	for _, text := range []string{"", "Bearer", "Bearer x", "bearer  x ", "Basic eA==", "Bearer\tx", "Bearer x y"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		secret, ok := auth.Bearer(text)
		if again, known := auth.Bearer("Bearer " + secret); again != secret || !known {
			t.Errorf("%q: %q, then %q", text, secret, again)
		}
		if ok && len(text) < len("Bearer") {
			t.Errorf("%q has no scheme", text)
		}
	})
}
