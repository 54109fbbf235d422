package router

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"slices"
	"time"

	"github.com/lamina-mesh/lamina/pkg/deploy"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
)

// A canary is rolled back for what it does, not for what it is asked. A request that fails on it runs again on the live
// version. If that answers, the canary is to blame, and the failure counts. If the request fails there as well, it is
// itself to blame: neither version counts it, nor the pipelines that it has ended. What cannot run again, because its
// client has seen a part of the answer, counts once for each prompt, however often a client repeats it.

// isCanary reports whether a digest that requests of a deployment go to is not its live version: it is a canary, or was
// one until a moment ago.
func (s *Service) isCanary(name, digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.deploys.state.Find(name)
	return name != "" && d != nil && d.Live != nil && d.Live.Digest != digest
}

// runVersions runs the request, and once more on the live version if it fails by the fault of a canary.
func (q *request) runVersions(
	ctx context.Context, encode func(context.Context, tokenizerv1.TokenizerServiceClient) ([]uint32, error),
) error {
	s, asked := q.service, *q // with its id and span
	err := q.runVersion(ctx, encode)
	if !q.failedOnCanary(ctx, err) {
		if q.digest != "" {
			s.judge(ctx, q.model, q.digest, err, q.promptKey())
		}
		return err
	}
	s.log.InfoContext(ctx, "run the request on the live version", "digest", q.digest, "error", err)
	model, canary, lost, failure := q.model, q.digest, q.lost, err
	asked.paid, asked.strikes = q.paid || q.charged, q.strikes.carried()
	*q = asked
	q.stable = true
	q.proves = func() { s.judge(ctx, model, canary, failure, 0) }
	err = q.runVersion(ctx, encode)
	switch {
	case err == nil || q.proves == nil: // it has had a token
		q.prove()
		s.judge(ctx, q.model, q.digest, err, q.promptKey())
	case ctx.Err() == nil && blamesVersion(err):
		s.excuse(model, canary, lost)
		s.excuse(model, q.digest, q.lost)
	default: // the client has gone, or the request is refused: nothing is known
		s.excuse(model, canary, nil)
	}
	return err
}

// prove counts the failure on the canary before, since the live version answers.
func (q *request) prove() {
	if q.proves != nil {
		q.proves()
		q.proves = nil
	}
}

// failedOnCanary reports whether the request has failed by the fault of a canary before its client has seen anything of
// the answer, so that the live version can answer it. Once a request is in the journal it stays on its version.
func (q *request) failedOnCanary(ctx context.Context, err error) bool {
	return err != nil && q.canary && !q.stable && q.live == nil && !q.answered && ctx.Err() == nil && blamesVersion(err)
}

// promptKey returns a number that is the same for all requests with this prompt; 0 if the prompt is not known.
func (q *request) promptKey() uint64 {
	if len(q.prompt) == 0 {
		return 0
	}
	h := fnv.New64a()
	_ = binary.Write(h, binary.LittleEndian, q.prompt) // never fails
	return h.Sum64()
}

// judge counts the end of a request for a model by the name that the client has asked for, and gives up the canary of a
// deployment whose requests fail. Failures with the same prompt count once; prompt is 0 for one that counts always.
func (s *Service) judge(ctx context.Context, name, digest string, err error, prompt uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.deploys
	s.m.deployed.ended(d.state, name, digest, ctx.Err() == nil && blamesVersion(err))
	of := d.state.Of(digest)
	if digest == "" || !slices.ContainsFunc(of,
		func(d *deploy.Deployment) bool { return d.Next != nil && d.Next.Canary }) {
		return
	}
	d.judge.Ended(digest, ctx.Err() == nil && blamesVersion(err), prompt)
	for _, deployment := range of {
		if _, known := d.faulty[deployment.Name]; known {
			continue
		}
		if reason := d.judge.Verdict(deployment); reason != "" {
			s.log.Warn("roll a version back", "deployment", deployment.Name, "digest", deployment.Next.Digest, "reason",
				reason)
			d.faulty[deployment.Name] = faultyVersion{*deployment.Next, reason}
			s.poke()
		}
	}
}

// excuse counts the end of a request that has failed on a version which is not to blame for it, nor for the loss of
// some pipelines, by their ids.
func (s *Service) excuse(name, digest string, lost []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m.deployed.ended(s.deploys.state, name, digest, true)
	s.failuresOf(digest).excuse(lost, time.Now())
}

// blamesVersion reports whether an error may be the fault of the model's version or of its pipelines. It is not if the
// request itself is at fault, the client has gone, or the router is full or stops.
func blamesVersion(err error) bool {
	if errors.Is(err, errStopping) || queueFull(err) {
		return false
	}
	switch fault.CodeOf(err) {
	case fault.Internal, fault.Unavailable, fault.DataLoss, fault.Aborted, fault.Unimplemented:
		return true
	}
	return false
}

// queueFull reports whether a router or shard has refused work because it has too much.
func queueFull(err error) bool {
	var e *fault.Error
	return errors.As(err, &e) && e.Reason == reasonQueue
}
