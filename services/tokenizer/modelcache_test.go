package tokenizer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

func asFault(err error, f **fault.Error) bool { return errors.As(err, f) }

// marked returns a vocabulary with a marker among its control tokens.
func marked(t *testing.T) *vocab.Vocab {
	t.Helper()
	v, err := vocab.TrainBPE(t.Context(), slices.Values([]string{"a"}), 260,
		vocab.TrainOptions{Special: []string{"<s>", "<tool_call>"}, BOS: "<s>", EOS: "<s>"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func held(t *testing.T, s *tokenizer.Service) []string {
	t.Helper()
	r, err := s.Describe(t.Context(), &tokenizerv1.DescribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, v := range r.GetVocabularies() {
		out = append(out, v.GetModel())
	}
	return out
}

func TestService_ModelCacheEvictsLeastRecentlyUsed(t *testing.T) {
	v := bpe(t)
	var opened atomic.Int32
	s, err := tokenizer.New(tokenizer.Config{
		Models: []tokenizer.Model{{Name: "own", Digest: "0", Vocab: v}}, MaxModels: 3,
		Open: func(_ context.Context, ref string) (tokenizer.Model, error) {
			opened.Add(1)
			return tokenizer.Model{Name: strings.TrimPrefix(ref, "sha256:"),
				Digest: "sha256:" + strings.TrimPrefix(ref, "sha256:"), Vocab: v}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	use := func(ref string) {
		t.Helper()
		if _, err := s.Encode(t.Context(), &tokenizerv1.EncodeRequest{Model: ref, Text: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	use("a")
	use("sha256:b")
	use("b")
	use("a")
	if opened.Load() != 2 {
		t.Errorf("opened %d models", opened.Load())
	}
	use("c")
	if got := held(t, s); !slices.Equal(got, []string{"a", "c", "own"}) {
		t.Errorf("after c: %v", got)
	}
	use("b")
	if got := held(t, s); !slices.Equal(got, []string{"b", "c", "own"}) {
		t.Errorf("after b: %v", got)
	}
}

func TestService_ModelCacheStaysWithinMaxBytes(t *testing.T) {
	v := bpe(t)
	open := func(_ context.Context, ref string) (tokenizer.Model, error) {
		return tokenizer.Model{Name: ref, Digest: ref, Vocab: v}, nil
	}
	probe, err := tokenizer.New(tokenizer.Config{Models: []tokenizer.Model{{Name: "m", Vocab: v}}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := probe.Describe(t.Context(), &tokenizerv1.DescribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	each := int64(r.GetVocabularies()[0].GetBytes())
	s, err := tokenizer.New(tokenizer.Config{Open: open, MaxBytes: 2*each + 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"a", "b", "c"} {
		if _, err := s.Describe(t.Context(), &tokenizerv1.DescribeRequest{Model: ref}); err != nil {
			t.Fatal(err)
		}
	}
	if got := held(t, s); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("%v", got)
	}
	if s, err = tokenizer.New(tokenizer.Config{Open: open, MaxBytes: each - 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Describe(t.Context(),
		&tokenizerv1.DescribeRequest{Model: "a"}); fault.CodeOf(err) != fault.Exhausted {
		t.Errorf("a model that is too large: %v", err)
	}
}

func TestService_ConcurrentRequestsLoadAModelOnce(t *testing.T) {
	v := bpe(t)
	var opened atomic.Int32
	begun, goOn := make(chan struct{}), make(chan struct{})
	s, err := tokenizer.New(tokenizer.Config{Open: func(ctx context.Context, ref string) (tokenizer.Model, error) {
		if opened.Add(1) == 1 {
			close(begun)
			select {
			case <-goOn:
			case <-ctx.Done():
				return tokenizer.Model{}, ctx.Err()
			}
		}
		return tokenizer.Model{Name: ref, Digest: ref, Vocab: v}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	first, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Encode(first, &tokenizerv1.EncodeRequest{Model: "a"}); !errors.Is(err, context.Canceled) {
			t.Errorf("the first: %v", err)
		}
	})
	<-begun
	for range 8 {
		wg.Go(func() {
			if _, err := s.Encode(t.Context(), &tokenizerv1.EncodeRequest{Model: "a"}); err != nil {
				t.Error(err)
			}
		})
	}
	cancel() // a request that waits for it loads it again
	wg.Wait()
	if n := opened.Load(); n != 2 {
		t.Errorf("opened %d times", n)
	}
	close(goOn)
}

// A request that waits for another one to load a model has a deadline of its own.
func TestService_RequestsLoadAModelAgainAfterTheDeadlineOfAnother(t *testing.T) {
	v := bpe(t)
	synctest.Test(t, func(t *testing.T) {
		var opened atomic.Int32
		s, err := tokenizer.New(tokenizer.Config{Open: func(ctx context.Context, ref string) (tokenizer.Model, error) {
			if opened.Add(1) == 1 {
				<-ctx.Done()
				return tokenizer.Model{}, ctx.Err()
			}
			return tokenizer.Model{Name: ref, Digest: ref, Vocab: v}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := s.Encode(short, &tokenizerv1.EncodeRequest{Model: "a"})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the first: %v", err)
			}
		})
		synctest.Wait() // it loads
		for range 8 {
			wg.Go(func() {
				if _, err := s.Encode(t.Context(), &tokenizerv1.EncodeRequest{Model: "a"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := opened.Load(); n != 2 {
			t.Errorf("opened %d times", n)
		}
	})
}

// A library whose own calls are canceled fails as with any other error.
func TestService_LibraryThatIsCanceledIsAskedOnce(t *testing.T) {
	var opened atomic.Int32
	s, err := tokenizer.New(tokenizer.Config{Open: func(context.Context, string) (tokenizer.Model, error) {
		if opened.Add(1) == 3 { // so that the test ends in any case
			return tokenizer.Model{}, fault.New(fault.NotFound, "test")
		}
		return tokenizer.Model{}, fault.New(fault.Canceled, "the connection is being closed")
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Encode(t.Context(), &tokenizerv1.EncodeRequest{Model: "a"})
	if fault.CodeOf(err) != fault.Canceled || opened.Load() != 1 {
		t.Errorf("opened %d times: %v", opened.Load(), err)
	}
}

// The server recovers from a panic of a handler. Nobody may wait for the model that it was loading.
func TestService_ModelWhoseLoadingHasPanickedIsLoadedAgain(t *testing.T) {
	v := bpe(t)
	synctest.Test(t, func(t *testing.T) {
		var opened atomic.Int32
		goOn := make(chan struct{})
		s, err := tokenizer.New(tokenizer.Config{Open: func(_ context.Context, ref string) (tokenizer.Model, error) {
			if opened.Add(1) == 1 {
				<-goOn
				panic("a damaged file")
			}
			return tokenizer.Model{Name: ref, Digest: ref, Vocab: v}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() {
				if recover() == nil {
					t.Error("nothing has panicked")
				}
			}()
			_, _ = s.Encode(ctx, &tokenizerv1.EncodeRequest{Model: "a"}) // it panics
		})
		synctest.Wait()
		wg.Go(func() {
			if _, err := s.Encode(ctx, &tokenizerv1.EncodeRequest{Model: "a"}); fault.CodeOf(err) != fault.Internal {
				t.Errorf("a request that has waited: %v", err)
			}
		})
		synctest.Wait()
		close(goOn)
		wg.Wait()
		if _, err := s.Encode(ctx, &tokenizerv1.EncodeRequest{Model: "a"}); err != nil {
			t.Errorf("a later request: %v", err)
		}
	})
}

func TestLibrary_FindsByNameAndDigest(t *testing.T) {
	dir := t.TempDir()
	v := marked(t)
	for _, name := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := v.WriteHF(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "two", "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := tokenizer.NewLibrary(dir)
	one, err := l.Open(t.Context(), "one")
	if err != nil || one.Name != "one" || one.Vocab.Size() != v.Size() {
		t.Fatalf("%v, %v", one, err)
	}
	two, err := l.Open(t.Context(), "two")
	if err != nil || two.Digest == one.Digest {
		t.Fatalf("%v, %v", two, err)
	}
	for _, m := range []tokenizer.Model{one, two} {
		if again, err := l.Open(t.Context(), m.Digest); err != nil || again.Name != m.Name {
			t.Errorf("%s: %v, %v", m.Digest, again.Name, err)
		}
	}
	for _, ref := range []string{"three", "../one", "README.md", "sha256:00"} {
		if _, err := l.Open(t.Context(), ref); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("%s: %v", ref, err)
		}
	}
}
