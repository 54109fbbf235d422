package consul_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

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
