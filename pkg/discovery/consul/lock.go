package consul

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	sessionTTL = 10 * time.Second       // the minimum that Consul accepts
	lockDelay  = 2 * time.Second        // before the lock of a lost holder is given away, so that it can finish
	renewRetry = 500 * time.Millisecond // after a renewal failed
)

// Lock waits for the lock of a key. A session holds it and is renewed until Release. When the
// session could not be renewed for its TTL, the lease counts as lost. That is before Consul gives
// the lock to another holder.
func (r *Registry) Lock(ctx context.Context, key, holder string) (discovery.Lease, error) {
	start := time.Now()
	create, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	id, _, err := r.client.Session().Create(&api.SessionEntry{
		Name: holder, TTL: sessionTTL.String(), Behavior: api.SessionBehaviorRelease, LockDelay: lockDelay,
	}, (&api.WriteOptions{}).WithContext(create))
	if err != nil {
		return nil, lockError(ctx, key, err)
	}
	renewal, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &lease{registry: r, key: keyPrefix + key, session: id, lost: make(chan struct{}), stop: stop,
		done: make(chan struct{})}
	go l.renew(renewal, start)
	if err := l.acquire(ctx, holder); err != nil {
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
		defer cancel()
		// A lock that cannot be released ends with its session.
		return nil, lockError(ctx, key, errors.Join(err, l.Release(release)))
	}
	return l, nil
}

func lockError(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil {
		return fault.Wrap(fault.CodeOf(ctx.Err()), errors.Join(ctx.Err(), err), "wait for lock %s", key)
	}
	return fault.Wrap(fault.Unavailable, err, "lock %s in consul", key)
}

type lease struct {
	registry *Registry
	key      string
	session  string
	token    uint64
	held     atomic.Bool
	stop     context.CancelFunc
	lost     chan struct{}
	done     chan struct{} // closed when renew has returned
	once     sync.Once
}

// acquire tries to take the key each time it becomes free, until it succeeds or ctx ends.
func (l *lease) acquire(ctx context.Context, holder string) error {
	// A blocking query waits until the holder of the key changes. When the key is free, acquire
	// competes with other waiters for it. If it loses, it reads the key again without blocking.
	kv := l.registry.client.KV()
	var index uint64
	for {
		now, next, err := l.look(ctx, index)
		if err != nil {
			return err
		}
		switch {
		case now != nil && now.Session == l.session:
			// The index of Raft keeps growing even when somebody deletes the key.
			l.token = now.ModifyIndex
			l.held.Store(true)
			return nil
		case now != nil && now.Session != "":
			if index = next; index < 1 {
				index = 1
			}
			continue
		}
		write, cancel := context.WithTimeout(ctx, answerTime)
		pair := &api.KVPair{Key: l.key, Value: []byte(holder), Session: l.session}
		held, _, err := kv.Acquire(pair, (&api.WriteOptions{}).WithContext(write))
		cancel()
		if err != nil {
			return err
		}
		if !held { // another holder was faster, or the delay after a lost holder is running
			wait(ctx, jitter(backoffFirst))
		}
		index = 0
	}
}

// look returns the state of the key as soon as its index differs from the given one.
func (l *lease) look(ctx context.Context, index uint64) (*api.KVPair, uint64, error) {
	select {
	case <-l.lost:
		return nil, 0, errors.New("the session was lost while waiting")
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, sessionTTL+answerTime)
	defer cancel()
	now, meta, err := l.registry.client.KV().Get(l.key,
		(&api.QueryOptions{WaitIndex: index, WaitTime: sessionTTL}).WithContext(ctx))
	if err != nil {
		return nil, 0, err
	}
	if meta.LastIndex < index {
		return now, 0, nil
	}
	return now, meta.LastIndex, nil
}

// renew keeps the session alive until it is stopped. The lease is lost when Consul reports the
// session as gone, when another session holds the key, or when the TTL has passed since the last
// successful renewal was sent.
func (l *lease) renew(ctx context.Context, last time.Time) {
	defer close(l.done)
	for pause := sessionTTL / 3; ; {
		wait(ctx, min(pause, time.Until(last.Add(sessionTTL))))
		if ctx.Err() != nil {
			return
		}
		start := time.Now()
		alive, err := l.alive(ctx, last.Add(sessionTTL))
		switch {
		case err == nil && alive:
			last, pause = start, sessionTTL/3
			continue
		case err != nil && time.Since(last) < sessionTTL:
			pause = renewRetry
			continue
		}
		if ctx.Err() == nil {
			l.once.Do(func() { close(l.lost) })
		}
		return
	}
}

// alive renews the session and reports whether it still holds the lock.
func (l *lease) alive(ctx context.Context, deadline time.Time) (bool, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	entry, _, err := l.registry.client.Session().Renew(l.session, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil || entry == nil || !l.held.Load() {
		return entry != nil, err
	}
	now, _, err := l.registry.client.KV().Get(l.key, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return false, err
	}
	return now != nil && now.Session == l.session, nil
}

// Lost returns a channel that is closed when the lock is no longer held.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Token returns the index of the change by which the lock was taken. It grows with every holder.
func (l *lease) Token() uint64 { return l.token }

// Release releases the lock and ends the session. Ending the session alone would also free the
// lock, but only after the delay that follows a lost holder.
func (l *lease) Release(ctx context.Context) error {
	l.stop()
	<-l.done
	l.once.Do(func() { close(l.lost) })
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	options := (&api.WriteOptions{}).WithContext(ctx)
	var released error
	if l.held.Load() {
		_, _, released = l.registry.client.KV().Release(&api.KVPair{Key: l.key, Session: l.session}, options)
	}
	_, destroyed := l.registry.client.Session().Destroy(l.session, options)
	if err := errors.Join(released, destroyed); err != nil {
		return fault.Wrap(fault.Unavailable, err, "release %s in consul", l.key)
	}
	return nil
}
