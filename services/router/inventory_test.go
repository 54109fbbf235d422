package router

// These tests are internal because discovery cannot choose when the router looks at its shards and tokenizers.

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/pkg/rpc/memnet"
)

// told is a shard and a tokenizer that answers a question when the test says so.
type told struct {
	shardv1.UnimplementedShardServiceServer
	asked chan struct{}
	shard chan *shardv1.DescribeResponse
}

func (s *told) Describe(ctx context.Context, _ *shardv1.DescribeRequest) (*shardv1.DescribeResponse, error) {
	s.asked <- struct{}{}
	select {
	case resp := <-s.shard:
		return resp, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// toldTokenizer is the same as a tokenizer.
type toldTokenizer struct {
	tokenizerv1.UnimplementedTokenizerServiceServer
	asked, answer chan struct{}
}

func (s *toldTokenizer) Describe(
	ctx context.Context, _ *tokenizerv1.DescribeRequest,
) (*tokenizerv1.DescribeResponse, error) {
	s.asked <- struct{}{}
	select {
	case <-s.answer:
		return &tokenizerv1.DescribeResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// looker is a router that is not run, and looks at the members when the test says so.
type looker struct {
	*Service
	t    *testing.T
	work sync.WaitGroup
}

// newLooker returns a router that can reach what is registered as "mem:member".
func newLooker(t *testing.T, register func(grpc.ServiceRegistrar)) *looker {
	network := memnet.New()
	l, err := network.Listen("member")
	if err != nil {
		t.Fatal(err)
	}
	server, dialer := rpc.NewServer(rpc.ServerOptions{}), rpc.NewDialer(rpc.DialOptions{Net: network})
	register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := errors.Join(<-served, dialer.Close()); err != nil {
			t.Error(err)
		}
	})
	return &looker{Service: New(Config{Dialer: dialer}), t: t}
}

// listed says what discovery lists now.
func (l *looker) listed(service, spans string) {
	l.update(service, []discovery.Instance{{ID: "m", Service: service, Addr: "mem:member",
		Meta: map[string]string{"spans": spans}}})
}

// look looks at the members, of which the only one has to be asked.
func (l *looker) look(why string) {
	l.t.Helper()
	l.describe(l.t.Context(), &l.work, func() {})
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.asking["mem:member"] {
		l.t.Fatalf("the member is not asked %s", why)
	}
}

// A shard may change after it has made its description and before the router has it. It is asked again then: if the
// change was forgotten, the router would neither use a new span nor leave an old one.
func TestService_ShardThatChangesWhileItIsAsked_IsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &told{asked: make(chan struct{}), shard: make(chan *shardv1.DescribeResponse)}
		r := newLooker(t, func(g grpc.ServiceRegistrar) { shardv1.RegisterShardServiceServer(g, s) })
		r.listed("shard", "a")
		for _, why := range []string{"when it is new", "after its first change", "after its second change",
			"after a change that was undone"} {
			r.look(why)
			<-s.asked
			switch why {
			case "when it is new", "after its first change":
				r.listed("shard", why)
			case "after its second change": // its description may be of the moment in between
				r.listed("shard", "soon undone")
				r.listed("shard", "after its first change")
			}
			s.shard <- &shardv1.DescribeResponse{Instance: why}
			r.work.Wait()
		}
		r.describe(t.Context(), &r.work, func() {})
		if d := r.held["m"]; d.resp.GetInstance() != "after a change that was undone" ||
			len(r.asking)+len(r.stale) > 0 {
			t.Errorf("%+v, %v, %v", d, r.asking, r.stale)
		}
		r.listed("shard", "b")
		r.redescribe("m", "mem:member", &shardv1.DescribeResponse{Instance: "what the placer has asked for before"})
		r.look("after a change that the placer's question did not see")
		<-s.asked
		s.shard <- &shardv1.DescribeResponse{}
		r.work.Wait()
	})
}

// The same for a tokenizer whose models are to be asked for again.
func TestService_TokenizerThatLearnsWhileItIsAsked_IsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &toldTokenizer{asked: make(chan struct{}), answer: make(chan struct{})}
		r := newLooker(t, func(g grpc.ServiceRegistrar) { tokenizerv1.RegisterTokenizerServiceServer(g, s) })
		r.listed("tokenizer", "")
		for _, why := range []string{"when it is new", "after it has learned a model", "after a further model"} {
			r.look(why)
			<-s.asked
			if why != "after a further model" {
				r.RenewVocabularies()
			}
			s.answer <- struct{}{}
			r.work.Wait()
		}
		r.describe(t.Context(), &r.work, func() {})
		if len(r.asking)+len(r.renew) > 0 {
			t.Errorf("it is asked again without a reason: %v, %v", r.asking, r.renew)
		}
		r.RenewVocabularies()
		r.update("tokenizer", nil)
		r.instances["tokenizer"] = nil // as checkMissing does
		if r.describe(t.Context(), &r.work, func() {}); len(r.renew) > 0 {
			t.Errorf("tokenizers that have gone are remembered: %v", r.renew)
		}
	})
}
