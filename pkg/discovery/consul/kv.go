package consul

import (
	"context"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const valuePrefix = "lamina/kv/" // of keys of documents

// Get returns the entry of a key. Its version is the index of its last change.
func (r *Registry) Get(ctx context.Context, key string) (discovery.Entry, error) {
	if err := discovery.CheckEntry(key, nil); err != nil {
		return discovery.Entry{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	options := &api.QueryOptions{RequireConsistent: true}
	pair, _, err := r.client.KV().Get(valuePrefix+key, options.WithContext(ctx))
	if err != nil {
		return discovery.Entry{}, fault.Wrap(fault.Unavailable, err, "read %s from consul", key)
	}
	return entryOf(pair), nil
}

func entryOf(pair *api.KVPair) discovery.Entry {
	if pair == nil {
		return discovery.Entry{}
	}
	return discovery.Entry{Value: pair.Value, Version: pair.ModifyIndex}
}

// Swap writes a value if the key has a version, by Consul's check-and-set.
func (r *Registry) Swap(ctx context.Context, key string, value []byte, version uint64) error {
	if err := discovery.CheckEntry(key, value); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	// Consul gives no new version to a pair that is written as it was. The version before makes each pair another one.
	pair := &api.KVPair{Key: valuePrefix + key, Value: value, Flags: version, ModifyIndex: version}
	written, _, err := r.client.KV().CAS(pair, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "write %s to consul", key)
	}
	if !written {
		return fault.New(fault.Aborted, "write %s to consul: it no longer has version %d", key, version)
	}
	return nil
}

// Follow sends the entry of a key, now and after each change. It uses blocking queries.
func (r *Registry) Follow(ctx context.Context, key string) (<-chan discovery.Entry, error) {
	if err := discovery.CheckEntry(key, nil); err != nil {
		return nil, err
	}
	ch := make(chan discovery.Entry, 1)
	go func() {
		defer close(ch)
		r.follow(ctx, key, ch)
	}()
	return ch, nil
}

func (r *Registry) follow(ctx context.Context, key string, ch chan discovery.Entry) {
	var index, last uint64
	pause, first := backoffFirst, true
	for ctx.Err() == nil {
		e, next, err := r.readKey(ctx, key, index)
		if err != nil { // see Registry.watch
			wait(ctx, jitter(pause))
			pause, index = min(2*pause, backoffMax), 0
			continue
		}
		pause = backoffFirst
		if first || e.Version != last {
			discovery.Offer(ch, e)
		}
		first, last = false, e.Version
		if next < index {
			next = 0 // Consul was restored from an older snapshot
		}
		index = next
	}
}

// readKey returns the entry of a key and an index. It waits until the index differs from the given one, but at
// most for waitTime.
func (r *Registry) readKey(ctx context.Context, key string, index uint64) (discovery.Entry, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, waitTime+waitTime/16+answerTime)
	defer cancel()
	options := (&api.QueryOptions{WaitIndex: index, WaitTime: waitTime}).WithContext(ctx)
	pair, meta, err := r.client.KV().Get(valuePrefix+key, options)
	if err != nil {
		return discovery.Entry{}, 0, err
	}
	return entryOf(pair), max(meta.LastIndex, 1), nil // an index of 0 would not block
}
