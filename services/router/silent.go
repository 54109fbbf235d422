package router

import (
	"context"
	"slices"
	"sync"
	"time"

	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
)

// silence is the search for stages that do not answer.
type silence struct {
	done   chan struct{} // closed at the end of the search
	stages []int         // their indices, once done is closed
}

// wait waits for the end of the search and returns the indices of the silent stages.
func (s *silence) wait() []int {
	<-s.done
	return s.stages
}

// known returns the indices of the silent stages, or nil as long as the search goes on.
func (s *silence) known() []int {
	select {
	case <-s.done:
		return s.stages
	default:
		return nil
	}
}

// findSilent asks every stage of a chain for its description until it answers or ctx ends, which has to
// happen soon. A link that has broken is restored by the first question.
func (p *pipeline) findSilent(ctx context.Context) *silence {
	chain := p.hops()
	s := &silence{done: make(chan struct{})}
	silent := make([]bool, len(chain))
	var asking sync.WaitGroup
	for i, hop := range chain {
		asking.Go(func() {
			for again := reopenAgain; ; again *= 2 {
				_, err := p.service.describeShard(ctx, hop.Addr)
				if silent[i] = err != nil; !silent[i] {
					return
				}
				select {
				case <-time.After(again):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	go func() { // ends with ctx at the latest
		asking.Wait()
		for i, is := range silent {
			if is {
				s.stages = append(s.stages, i)
			}
		}
		close(s.done)
	}()
	return s
}

// replaceShards puts free shards in the place of stages that are lost. It returns false if there is none
// for one of them.
func (s *Service) replaceShards(p *pipeline, lost []int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	chain := p.hops()
	free := s.spans(true, func(h *shardv1.Held) bool { return h.GetDigest() == p.digest })
	next, ok := chain.Replace(lost, free)
	if !ok {
		return false
	}
	for _, i := range lost { // it is asked again when it is back
		delete(s.held, chain[i].Shard)
	}
	s.building[p.key] = next
	p.mu.Lock()
	p.chain = next
	p.mu.Unlock()
	s.notifyChange()
	return true
}

// tellSpareShards tells the pipelines whether a free shard could take the place of one of their stages.
func (s *Service) tellSpareShards() {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := s.spans(true, func(*shardv1.Held) bool { return true })
	for _, p := range s.pipelines {
		chain, could := p.hops(), false
		for i := range chain {
			_, ok := chain.Replace([]int{i}, free)
			could = could || ok
		}
		p.spareShard.Store(could)
	}
}

// others returns the other open pipelines that could take over a pipeline's sequences.
func (s *Service) others(p *pipeline) (out []*pipeline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.pipelines {
		if o != p && o.digest == p.digest && o.draft == p.draft && !o.dead() {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *pipeline) int { return slices.Compare(a.name, b.name) })
	return out
}
