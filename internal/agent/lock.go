package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// defaultTTL is the lifetime of a session that names none.
const defaultTTL = 10 * time.Second

func (a *Agent) createSession(w http.ResponseWriter, r *http.Request) {
	var body struct{ Name, TTL, Behavior string }
	if !decode(w, r, &body) {
		return
	}
	ttl, err := time.ParseDuration(body.TTL)
	if err != nil || ttl <= 0 {
		ttl = defaultTTL
	}
	id := make([]byte, 16)
	rand.Read(id) // never fails
	s := &session{ID: hex.EncodeToString(id), Name: body.Name, ttl: ttl, expires: time.Now().Add(ttl),
		deletes: body.Behavior == "delete"}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sessions[s.ID] = s
	answer(w, map[string]string{"ID": s.ID})
}

func (a *Agent) renewSession(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sessions[r.PathValue("id")]
	if s == nil {
		http.Error(w, "unknown session", http.StatusNotFound)
		return
	}
	s.expires = time.Now().Add(s.ttl)
	answer(w, []*session{s})
}

func (a *Agent) destroySession(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(r.PathValue("id"))
	answer(w, true)
}

// drop ends a session, and frees or deletes the keys that it holds. The caller holds mu.
func (a *Agent) drop(id string) {
	s := a.sessions[id]
	delete(a.sessions, id)
	for _, p := range a.keys {
		if p.Session != id {
			continue
		}
		a.change()
		if s != nil && s.deletes {
			delete(a.keys, p.Key)
			continue
		}
		p.Session, p.ModifyIndex = "", a.index
	}
}

// expire ends sessions that were not renewed in time.
func (a *Agent) expire(ctx context.Context) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		a.mu.Lock()
		for id, s := range a.sessions {
			if time.Now().After(s.expires) {
				a.drop(id)
			}
		}
		a.mu.Unlock()
	}
}

// get answers with the pair of a key, or with all whose keys begin with it.
func (a *Agent) get(w http.ResponseWriter, r *http.Request) {
	a.block(r)
	defer a.mu.Unlock()
	a.meta(w)
	key, all := r.PathValue("key"), r.URL.Query().Has("recurse")
	found := []*pair{}
	for _, name := range slices.Sorted(maps.Keys(a.keys)) {
		if name == key || all && strings.HasPrefix(name, key) {
			found = append(found, a.keys[name])
		}
	}
	if len(found) == 0 {
		http.Error(w, "", http.StatusNotFound)
		return
	}
	answer(w, found)
}

// put takes or releases the lock of a key for a session, or writes its value if it has a version.
func (a *Agent) put(w http.ResponseWriter, r *http.Request) {
	value, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	query := r.URL.Query()
	a.mu.Lock()
	defer a.mu.Unlock()
	key := r.PathValue("key")
	p := a.keys[key]
	switch {
	case query.Has("acquire"):
		id := query.Get("acquire")
		if a.sessions[id] == nil {
			http.Error(w, "invalid session", http.StatusInternalServerError)
			return
		}
		if p != nil && p.Session != "" && p.Session != id {
			answer(w, false)
			return
		}
		a.change()
		if p == nil {
			p = &pair{Key: key, CreateIndex: a.index}
			a.keys[key] = p
		}
		if p.Session != id {
			p.LockIndex++
		}
		p.Session, p.Value, p.ModifyIndex = id, value, a.index
		answer(w, true)
	case query.Has("release"):
		if p == nil || p.Session != query.Get("release") {
			answer(w, false)
			return
		}
		a.change()
		p.Session, p.Value, p.ModifyIndex = "", value, a.index
		answer(w, true)
	case query.Has("cas"):
		version, err := strconv.ParseUint(query.Get("cas"), 10, 64)
		if err != nil {
			http.Error(w, "cas: want a number", http.StatusBadRequest)
			return
		}
		if p == nil && version != 0 || p != nil && p.ModifyIndex != version {
			answer(w, false)
			return
		}
		a.change()
		if p == nil {
			p = &pair{Key: key, CreateIndex: a.index}
			a.keys[key] = p
		}
		p.Value, p.ModifyIndex = value, a.index
		answer(w, true)
	default:
		http.Error(w, "want acquire, release or cas", http.StatusBadRequest)
	}
}
