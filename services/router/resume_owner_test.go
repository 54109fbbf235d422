package router_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/router"
)

func TestResume_OnlyItsTenantKnowsARequest(t *testing.T) {
	j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
	m := newMesh(t, 1, 1, router.Config{Journal: j})
	other := m.peer("router-b", router.Config{Journal: j})
	var p part
	if err := p.generate(as(patient(t), "a"), m.client, resumable("secret", 20), nil); err != nil {
		t.Fatal(err)
	}
	stored(t, j, journal.Key{Tenant: "a", ID: p.id})
	for _, client := range []routerv1.RouterServiceClient{m.client, other.client} {
		for _, tenant := range []string{"b", ""} {
			got := part{id: p.id}
			if err := got.resume(as(patient(t), tenant), client, nil); status.Code(err) != codes.NotFound ||
				got.started != nil {
				t.Errorf("tenant %q: %v", tenant, err)
			}
			_, err := client.Cancel(as(patient(t), tenant), &routerv1.CancelRequest{RequestId: p.id})
			if status.Code(err) != codes.NotFound {
				t.Errorf("cancel by tenant %q: %v", tenant, err)
			}
		}
		got := part{id: p.id}
		if err := got.resume(as(patient(t), "a"), client, nil); err != nil {
			t.Error(err)
		}
		for _, id := range []string{strings.Repeat("0", 32), "short", p.id + "0"} {
			unknown := part{id: id}
			if err := unknown.resume(as(patient(t), "a"), client, nil); status.Code(err) != codes.NotFound {
				t.Errorf("unknown id %q: %v", id, err)
			}
		}
		bad := part{id: "no blanks"}
		if err := bad.resume(patient(t), client, nil); status.Code(err) != codes.InvalidArgument {
			t.Errorf("an id that cannot be: %v", err)
		}
	}
}

// slowJournal is a journal whose first Read lasts until its caller gives up.
type slowJournal struct {
	journal.Journal
	once  sync.Once
	reads chan struct{} // closed when the first Read has begun
}

func (j *slowJournal) Read(ctx context.Context, key journal.Key) ([]journal.Record, error) {
	first := false
	j.once.Do(func() { first = true })
	if first {
		close(j.reads)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return j.Journal.Read(ctx, key)
}

// A request that another call still looks for is no more known than it is without that call.
func TestResume_CancelOfAnUnknownRequestThatIsLookedFor(t *testing.T) {
	j := &slowJournal{Journal: journal.NewMemory(journal.Limits{Bytes: 1 << 24}), reads: make(chan struct{})}
	m := newMesh(t, 1, 1, router.Config{Journal: j})
	id := strings.Repeat("5c", 16)
	var looking sync.WaitGroup
	looking.Go(func() {
		got := part{id: id}
		if err := got.resume(patient(t), m.client, nil); err == nil {
			t.Error("an unknown request is resumed")
		}
	})
	<-j.reads
	_, err := m.client.Cancel(patient(t), &routerv1.CancelRequest{RequestId: id})
	if status.Code(err) != codes.NotFound {
		t.Errorf("got %v", err)
	}
	looking.Wait()
}

func withID(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-request-id", id)
}

func TestResume_IDsOfClients(t *testing.T) {
	j := journal.NewMemory(journal.Limits{Bytes: 1 << 24})
	m := newMesh(t, 1, 1, router.Config{Journal: j})
	id := strings.Repeat("9a", 16)
	var p part
	if err := p.generate(withID(patient(t), id), m.client, resumable("own id", 20), nil); err != nil || p.id != id {
		t.Fatalf("id %q, %v", p.id, err)
	}
	var again part
	err := again.generate(withID(patient(t), id), m.client, resumable("hijack", 20), nil)
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("the id of another request: %v", err)
	}
	err = again.generate(withID(patient(t), "req-1"), m.client, resumable("hijack", 20), nil)
	var f *fault.Error
	if !errors.As(rpc.FromStatus(err), &f) || f.Code != fault.Invalid || f.Field != "x-request-id" {
		t.Errorf("an id that can be guessed: %v", err)
	}
	if err := again.generate(withID(as(patient(t), "b"), id), m.client, resumable("theirs", 20), nil); err != nil {
		t.Errorf("the same id of another tenant: %v", err)
	}
	again.expect(t, "theirs", 20)
	// A router that does not know the id learns from the journal that it is in use.
	stored(t, j, journal.Key{ID: id})
	other := m.peer("router-b", router.Config{Journal: j})
	var late part
	err = late.generate(withID(patient(t), id), other.client, resumable("hijack", 1000), nil)
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("the id of a request of another router: %v", err)
	}
	p.tokens = nil
	if err := p.resume(patient(t), other.client, nil); err != nil {
		t.Error(err)
	}
	p.expect(t, "own id", 20)
}

func TestResume_WhatCannotBeResumable(t *testing.T) {
	m := newMesh(t, 1, 1, router.Config{})
	for field, change := range map[string]func(*routerv1.GenerateRequest){
		"resumable": func(r *routerv1.GenerateRequest) { r.Sampling.Choices = 2 },
		"resumable ": func(r *routerv1.GenerateRequest) {
			r.Echo, r.PromptLogprobs = true, true
		},
		"client_state":  func(r *routerv1.GenerateRequest) { r.ClientState = make([]byte, 256<<10+1) },
		"client_state ": func(r *routerv1.GenerateRequest) { r.Resumable = false },
		"max_tokens":    func(r *routerv1.GenerateRequest) { r.MaxTokens = 1 << 30 },
	} {
		r := resumable("never", 4)
		change(r)
		var p part
		err := p.generate(patient(t), m.client, r, nil)
		var f *fault.Error
		if !errors.As(rpc.FromStatus(err), &f) || f.Code != fault.Invalid || f.Field != strings.TrimSpace(field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
