package consul_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	fleet "github.com/lamina-mesh/lamina/internal/agent"
	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// awaitPost reads documents until there is one with a value, or none at all for an empty value.
func awaitPost(t *testing.T, ch <-chan map[string][]byte, want string) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	for {
		select {
		case docs, open := <-ch:
			if !open {
				t.Fatal("the channel is closed")
			}
			if value, ok := docs["board/a"]; ok == (want != "") && string(value) == want {
				return
			}
		case <-limit:
			t.Fatalf("waited for %q", want)
		}
	}
}

func TestBoard_DocumentsEndWithTheirSession(t *testing.T) {
	t.Parallel()
	a := agent(t)
	r, other := registry(t, a), registry(t, a)
	raw, err := api.NewClient(&api.Config{Address: a.addr(), Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	ch, err := other.Posts(t.Context(), "board/")
	if err != nil {
		t.Fatal(err)
	}
	awaitPost(t, ch, "")
	if err := r.Post(t.Context(), "board/a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	awaitPost(t, ch, "1")
	if err := other.Post(t.Context(), "board/a", []byte("2")); fault.CodeOf(err) != fault.Aborted {
		t.Errorf("post over another member's document: %v", err)
	}
	end := func() { // as Consul does when a session was not renewed
		t.Helper()
		sessions, _, err := raw.Session().List(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sessions {
			if _, err := raw.Session().Destroy(s.ID, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	end()
	awaitPost(t, ch, "")
	again := func(value string) { // posts, as a member does, until the document is seen
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		var posting sync.WaitGroup
		posting.Go(func() {
			for tick := time.NewTicker(100 * time.Millisecond); ctx.Err() == nil; {
				_ = r.Post(ctx, "board/a", []byte(value)) // fails while Consul has no leader
				select {
				case <-tick.C:
				case <-ctx.Done():
					tick.Stop()
				}
			}
		})
		defer posting.Wait()
		defer cancel()
		awaitPost(t, ch, value)
	}
	again("3")
	a.stop()
	if err := r.Post(t.Context(), "board/a", []byte("4")); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("post with no agent: %v", err)
	}
	a.start()
	again("5")
}

func TestBoard_DocumentsOfTheDeadGoAway(t *testing.T) {
	t.Parallel()
	a := agent(t)
	dead, reader := registry(t, a), registry(t, a)
	ch, err := reader.Posts(t.Context(), "board/")
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.Post(t.Context(), "board/a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	awaitPost(t, ch, "1")
	awaitPost(t, ch, "") // it posts no more
}

// Consul cannot be reached for a moment, in which a document is withdrawn. Whoever posts it again later has not lost
// the key to itself.
func TestBoard_ADocumentComesBackAfterAWithdrawalThatFailed(t *testing.T) {
	t.Parallel()
	a, err := fleet.New()
	if err == nil {
		err = a.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var away atomic.Bool
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: a.Addr()})
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	proxy.Transport = transport
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			http.Error(w, "no leader", http.StatusInternalServerError)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer server.Close()
	r, err := consul.New(consul.Config{Addr: strings.TrimPrefix(server.URL, "http://")})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Post(t.Context(), "board/a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	away.Store(true)
	if err := r.Withdraw(t.Context(), "board/a"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("withdraw while there is no leader: %v", err)
	}
	away.Store(false)
	if err := r.Post(t.Context(), "board/a", []byte("1")); err != nil {
		t.Errorf("post the document again: %v", err)
	}
	if err := r.Withdraw(t.Context(), "board/a"); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := r.Posts(ctx, "board/")
	if err != nil {
		t.Fatal(err)
	}
	awaitPost(t, ch, "") // it was taken down, and not left to its session
	cancel()
	for range ch {
		continue
	}
}

func TestBoard_LongDocumentsAreListedLessOften(t *testing.T) {
	t.Parallel()
	long := make([]byte, 256<<10)
	for name, c := range map[string]struct {
		docs map[string][]byte
		want time.Duration
	}{
		"none":  {map[string][]byte{}, 200 * time.Millisecond},
		"short": {map[string][]byte{"a": long[:100], "b": long[:100]}, 200 * time.Millisecond},
		"8 long ones are 2 MiB": {map[string][]byte{"a": long, "b": long, "c": long, "d": long, "e": long, "f": long,
			"g": long, "h": long}, time.Second},
		"very long": {map[string][]byte{"a": make([]byte, 64<<20)}, discovery.PostEvery},
	} {
		if got := consul.UntilList(c.docs); got != c.want {
			t.Errorf("%s: wait %v, want %v", name, got, c.want)
		}
	}
}
