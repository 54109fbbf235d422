package shard_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/weights"
	"github.com/lamina-mesh/lamina/services/shard"
)

// Layers of a model whose files have holes serve only when all of their tensors have been fetched.
func TestService_PartServesOnlyWhatWasFetched(t *testing.T) {
	const digest = "sha256:part"
	r := newAssignRig(t, 1<<30)
	files, err := model.Open(r.files.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	source := files.Source.(weights.Placed)
	var mu sync.Mutex
	there := map[weights.Place]bool{}
	var fail error
	keep := "" // a tensor that is not fetched by mistake
	err = r.service.OfferPart(shard.Part{Name: "part", Digest: digest, Files: files,
		Has: func(p weights.Place) bool {
			mu.Lock()
			defer mu.Unlock()
			return there[p]
		},
		Fetch: func(_ context.Context, names []string, progress func(done, total int64)) error {
			mu.Lock()
			defer mu.Unlock()
			done := int64(0)
			for _, name := range names {
				if p, _ := source.Place(name); name != keep {
					there[p] = true
					done += p.Bytes
					progress(done, 1<<20)
				}
			}
			return fail
		}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.service.Measure(r.ctx); err != nil {
		t.Fatalf("measure a model with holes: %v", err)
	}
	assign := func() error {
		_, err := last(r.client.Assign(r.ctx,
			&shardv1.AssignRequest{Digest: digest, Lo: 1, Hi: 3, KvPositions: 128, Fence: 1}))
		return err
	}
	held := func() int {
		n := 0
		for _, h := range r.describe().GetHeld() {
			if h.GetDigest() == digest {
				n++
			}
		}
		return n
	}
	fail = fault.New(fault.Unavailable, "no shard has sent it")
	if err := assign(); status.Code(err) != codes.Unavailable || held() != 0 {
		t.Errorf("layers that could not be fetched: %v, %d spans are held", err, held())
	}
	mu.Lock()
	clear(there)
	fail, keep = nil, files.Span(model.Range{Lo: 1, Hi: 2})[0]
	mu.Unlock()
	if err := assign(); status.Code(err) != codes.FailedPrecondition || held() != 0 {
		t.Errorf("a tensor has a hole: %v, %d spans are held", err, held())
	}
	keep = ""
	fetched, err := last(r.client.Prefetch(r.ctx, &shardv1.PrefetchRequest{Digest: digest, Lo: 1, Hi: 3}))
	if l := fetched.GetLoading(); err != nil || l.GetFetchedBytes() == 0 || l.GetFetchBytes() != 1<<20 {
		t.Errorf("prefetched %v, %v", l, err)
	}
	if err := assign(); err != nil || held() != 1 {
		t.Errorf("layers that were fetched: %v, %d spans are held", err, held())
	}
	if _, err := files.Source.Data(files.Span(model.Range{Lo: 3, Hi: 4})[0]); fault.CodeOf(err) !=
		fault.FailedPrecondition {
		t.Errorf("read a tensor that was not fetched: %v", err)
	}
	err = r.service.OfferPart(shard.Part{Name: "x", Files: &model.Files{Source: unplaced{files.Source}}})
	var known *fault.Error
	if !errors.As(err, &known) || known.Code != fault.Unimplemented {
		t.Errorf("offered tensors that are no parts of files: %v", err)
	}
}

// unplaced is a source that is not Placed.
type unplaced struct{ weights.Source }
