package consul

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

const (
	// A document may be put up again as soon as its session has ended. Consul takes no delay for its default one.
	postDelay = time.Millisecond
	// gather is how long a reader waits between two lists, so that documents which change every second cost a
	// reader few lists a second and not one for each document.
	gather = 200 * time.Millisecond
	// bytesPerSecond bounds what a reader of long documents lists on the average, since each list has all of them. It
	// waits at most discovery.PostEvery.
	bytesPerSecond = 2 << 20
	// boardWait bounds a blocking query. A Consul that has forgotten everything counts from the start, and answers a
	// query with an index from before only at its end.
	boardWait = 5 * time.Second
)

// post is a document of this process. A session holds its key, and Consul deletes the key with the session.
type post struct {
	session string
	renewed time.Time // when the last renewal that succeeded was sent
	value   []byte    // as it is in Consul; nil if that is not known
}

// Post puts up a document, and renews its session.
func (r *Registry) Post(ctx context.Context, key string, value []byte) error {
	if err := discovery.CheckEntry(key, value); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	r.mu.Lock()
	p := r.posts[key]
	if p == nil {
		p = &post{}
		r.posts[key] = p
	}
	r.mu.Unlock()
	if err := r.keepSession(ctx, key, p); err != nil {
		return fault.Wrap(fault.Unavailable, err, "post %s to consul", key)
	}
	if p.value != nil && bytes.Equal(p.value, value) {
		return nil
	}
	p.value = nil
	pair := &api.KVPair{Key: valuePrefix + key, Value: value, Session: p.session}
	held, _, err := r.client.KV().Acquire(pair, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		p.renewed = time.Time{} // perhaps the session has ended: the next post finds out
		return fault.Wrap(fault.Unavailable, err, "post %s to consul", key)
	}
	if !held {
		return fault.New(fault.Aborted, "post %s to consul: another member has the key", key)
	}
	p.value = append([]byte{}, value...)
	return nil
}

// keepSession renews the session of a document if that is due. It begins another one if there is none any more, as
// after a restart of Consul.
func (r *Registry) keepSession(ctx context.Context, key string, p *post) error {
	start, options := time.Now(), (&api.WriteOptions{}).WithContext(ctx)
	if p.session != "" {
		if start.Sub(p.renewed) < sessionTTL/5 {
			return nil
		}
		entry, _, err := r.client.Session().Renew(p.session, options)
		if err != nil {
			return err
		}
		if entry != nil {
			p.renewed = start
			return nil
		}
	}
	*p = post{}
	id, _, err := r.client.Session().Create(&api.SessionEntry{
		Name: "lamina-" + key, TTL: sessionTTL.String(), Behavior: api.SessionBehaviorDelete, LockDelay: postDelay,
	}, options)
	if err != nil {
		return err
	}
	p.session, p.renewed = id, start
	return nil
}

// Withdraw ends the session of a document, and the document with it. If that fails, the document ends with the TTL of
// its session, which the next post goes on with: another session would find the key held.
func (r *Registry) Withdraw(ctx context.Context, key string) error {
	r.mu.Lock()
	p := r.posts[key]
	r.mu.Unlock()
	if p != nil && p.session != "" {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		if _, err := r.client.Session().Destroy(p.session, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
			p.renewed, p.value = time.Time{}, nil // perhaps it has ended: the next post finds out
			return fault.Wrap(fault.Unavailable, err, "withdraw %s from consul", key)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.posts, key)
	return nil
}

// Posts sends the documents with a prefix. It uses blocking queries.
func (r *Registry) Posts(ctx context.Context, prefix string) (<-chan map[string][]byte, error) {
	if err := discovery.CheckEntry(prefix, nil); err != nil {
		return nil, err
	}
	ch := make(chan map[string][]byte, 1)
	go func() {
		defer close(ch)
		r.readPosts(ctx, prefix, ch)
	}()
	return ch, nil
}

func (r *Registry) readPosts(ctx context.Context, prefix string, ch chan map[string][]byte) {
	var index uint64
	pause := backoffFirst
	for ctx.Err() == nil {
		docs, next, err := r.listPosts(ctx, prefix, index)
		if err != nil { // see Registry.watch
			wait(ctx, jitter(pause))
			pause, index = min(2*pause, backoffMax), 0
			continue
		}
		pause = backoffFirst
		if next != index {
			discovery.Offer(ch, docs)
			wait(ctx, untilList(docs))
		}
		if next < index {
			next = 0 // Consul was restored from an older snapshot
		}
		index = next
	}
}

// untilList returns how long a reader waits after a list of documents.
func untilList(docs map[string][]byte) time.Duration {
	size := 0
	for _, value := range docs {
		size += len(value)
	}
	return min(max(gather, time.Duration(size)*time.Second/bytesPerSecond), discovery.PostEvery)
}

// listPosts returns the documents and their index. It waits until the index differs from the given one, but at most
// for boardWait.
func (r *Registry) listPosts(ctx context.Context, prefix string, index uint64) (map[string][]byte, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, boardWait+boardWait/16+answerTime)
	defer cancel()
	options := (&api.QueryOptions{WaitIndex: index, WaitTime: boardWait}).WithContext(ctx)
	pairs, meta, err := r.client.KV().List(valuePrefix+prefix, options)
	if err != nil {
		return nil, 0, err
	}
	docs := map[string][]byte{}
	for _, p := range pairs {
		if p.Session != "" { // what nobody holds is not a post
			docs[strings.TrimPrefix(p.Key, valuePrefix)] = p.Value
		}
	}
	return docs, max(meta.LastIndex, 1), nil
}
