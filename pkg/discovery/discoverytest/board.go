package discoverytest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// awaitPosts reads the documents until they are as wanted, given as "key=value" in order and separated by spaces.
func awaitPosts(t *testing.T, ch <-chan map[string][]byte, want string) {
	t.Helper()
	receive(t, ch, want, func(docs map[string][]byte) bool {
		for _, doc := range strings.Fields(want) {
			key, value, _ := strings.Cut(doc, "=")
			if got, ok := docs[key]; !ok || string(got) != value {
				return false
			}
		}
		return len(docs) == len(strings.Fields(want))
	})
}

func posts(ctx context.Context, t *testing.T, r discovery.Board) {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := r.Posts(reading, "board/")
	if err != nil {
		t.Fatal(err)
	}
	awaitPosts(t, ch, "")
	post := func(key, value string) {
		t.Helper()
		if err := r.Post(ctx, key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	post("board/a", "1")
	awaitPosts(t, ch, "board/a=1")
	post("boards", "another prefix")
	post("board/b", "2")
	post("board/b", "2")
	awaitPosts(t, ch, "board/a=1 board/b=2")
	slow, err := r.Posts(reading, "board/")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		post("board/a", fmt.Sprint(i))
	}
	awaitPosts(t, ch, "board/a=4 board/b=2")
	awaitPosts(t, slow, "board/a=4 board/b=2")
	if err := r.Withdraw(ctx, "board/a"); err != nil {
		t.Fatal(err)
	}
	awaitPosts(t, ch, "board/b=2")
	if err := r.Withdraw(ctx, "board/a"); err != nil {
		t.Errorf("withdraw what is not there: %v", err)
	}
	post("board/a", "again")
	awaitPosts(t, ch, "board/a=again board/b=2")
	for _, key := range []string{"board/a", "board/b", "boards"} {
		if err := r.Withdraw(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	awaitPosts(t, ch, "")
	cancel()
	closed(t, ch)
}

func badPosts(ctx context.Context, t *testing.T, r discovery.Board) {
	for _, key := range []string{"", "/a", "a b", "a?b", strings.Repeat("k", 300)} {
		if err := r.Post(ctx, key, nil); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("post %q: %v", key, err)
		}
		if _, err := r.Posts(ctx, key); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("posts of %q: %v", key, err)
		}
	}
	if err := r.Post(ctx, "board/long", make([]byte, discovery.MaxValue+1)); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a document that is too long: %v", err)
	}
}
