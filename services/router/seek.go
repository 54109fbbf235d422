package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// A tokenizer lists the vocabularies that it has loaded. It may be able to load others: so it is asked for the models
// of shards that no tokenizer has listed.

const (
	seekLimit = time.Minute      // for one answer: a vocabulary may have to be fetched
	seekAgain = 15 * time.Second // until a tokenizer is asked for the same model again
	maxSought = 64               // models that are asked for at the same time
)

// sought is a model that a tokenizer is asked for.
type sought struct{ addr, digest string }

// seekTokenizers asks tokenizers for the models of shards that none has listed. It does not wait for the answers.
func (s *Service) seekTokenizers(ctx context.Context, wg *sync.WaitGroup, notify func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	unknown := s.unknownModels()
	for k, at := range s.sought {
		if s.vocabs[k.addr] == nil || !slices.Contains(unknown, k.digest) && now.Sub(at) >= seekAgain {
			delete(s.sought, k)
		}
	}
	for _, digest := range unknown {
		for addr := range s.vocabs {
			k := sought{addr, digest}
			if at, asked := s.sought[k]; asked && now.Sub(at) < seekAgain || len(s.sought) >= maxSought && !asked {
				continue
			}
			s.sought[k] = now.Add(seekLimit) // until the answer has come
			wg.Go(func() { s.seek(ctx, k, notify) })
		}
	}
}

// unknownModels returns the digests of the models of shards that no tokenizer has listed, sorted. The caller holds mu.
func (s *Service) unknownModels() []string {
	var out []string
	for _, d := range s.held {
		for _, e := range d.resp.GetInventory().GetOffers() {
			out = append(out, e.GetDigest())
		}
		for _, h := range d.resp.GetHeld() {
			out = append(out, h.GetDigest())
		}
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(digest string) bool { return s.models[digest] != nil })
}

// seek asks one tokenizer for one model.
func (s *Service) seek(ctx context.Context, k sought, notify func()) {
	if s.learn(ctx, k) {
		notify()
	}
}

// learn asks one tokenizer for one model, and reports whether it knows it.
func (s *Service) learn(ctx context.Context, k sought) bool {
	limited, cancel := context.WithTimeout(ctx, seekLimit)
	defer cancel()
	var resp *tokenizerv1.DescribeResponse
	conn, err := s.cfg.Dialer.Dial(k.addr)
	if err == nil {
		resp, err = tokenizerv1.NewTokenizerServiceClient(conn).Describe(limited,
			&tokenizerv1.DescribeRequest{Model: k.digest})
		err = rpc.FromStatus(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sought[k] = time.Now()
	if err != nil {
		if code := fault.CodeOf(err); code != fault.NotFound && ctx.Err() == nil {
			s.log.Debug("ask a tokenizer for a model", "address", k.addr, "digest", k.digest, "error", err)
		}
		return false
	}
	before := s.vocabs[k.addr]
	if before == nil { // it has gone
		return false
	}
	next := &tokenizerv1.DescribeResponse{Vocabularies: slices.Clone(before.GetVocabularies())}
	for _, v := range resp.GetVocabularies() {
		if v.GetDigest() == k.digest {
			next.Vocabularies = append(next.Vocabularies, v)
			s.log.Info("a tokenizer knows a further model", "address", k.addr, "model", v.GetModel(), "digest",
				k.digest)
		}
	}
	s.vocabs[k.addr] = next
	s.collectModels()
	s.notifyChange()
	return true
}
