package console

import (
	"net/http"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// keyState is a key as it is listed.
type keyState struct {
	auth.Key
	State string `json:"state"` // active, expired or revoked
}

func stateOf(k auth.Key) keyState { return keyState{k, k.State(time.Now())} }

// errNoKeys says what to do where there are no keys.
func errNoKeys() error {
	return fault.New(fault.FailedPrecondition, "change keys: this router runs without keys: run lamina keys create, and "+
		"start it with --auth-keys FILE")
}

func (s *server) keys(w http.ResponseWriter, _ *http.Request) {
	if s.Keys == nil {
		s.fail(w, errNoKeys())
		return
	}
	keys, err := s.Keys.List()
	if err != nil {
		s.fail(w, err)
		return
	}
	list := []keyState{}
	for _, k := range keys {
		list = append(list, stateOf(k))
	}
	s.reply(w, http.StatusOK, map[string]any{"keys": list})
}

// keyBody describes a key to make.
type keyBody struct {
	Name     string      `json:"name"`
	Tenant   string      `json:"tenant"` // empty for the name
	Roles    []auth.Role `json:"roles"`
	Verbs    []auth.Verb `json:"verbs"`
	Models   []string    `json:"models"`
	Requests int64       `json:"requests_per_minute"`
	Tokens   int64       `json:"tokens_per_minute"`
	Seconds  int64       `json:"expires_in"` // 0 for never
}

// maxLife is the longest life of a key that expires, in seconds: 100 years.
const maxLife = 100 * 365 * 24 * 3600

func (s *server) addKey(w http.ResponseWriter, r *http.Request) {
	var body keyBody
	if !s.decode(w, r, &body) {
		return
	}
	if s.Keys == nil {
		s.fail(w, errNoKeys())
		return
	}
	k := auth.Key{Name: body.Name, Tenant: body.Tenant, Roles: body.Roles, Verbs: body.Verbs, Models: body.Models,
		Requests: body.Requests, Tokens: body.Tokens}
	switch {
	case body.Seconds < 0 || body.Seconds > maxLife:
		s.fail(w, fault.Field("expires_in", "want 0 to %d seconds, got %d", maxLife, body.Seconds))
		return
	case body.Seconds > 0:
		k.Expires = time.Now().Add(time.Duration(body.Seconds) * time.Second).UTC().Truncate(time.Second)
	}
	if err := auth.CheckKey(r.Context(), &k); err != nil {
		s.fail(w, err)
		return
	}
	k, secret, err := s.Keys.Add(k)
	s.shown(w, k, secret, err)
}

// shown answers with the secret of a key, which is sent this once.
func (s *server) shown(w http.ResponseWriter, k auth.Key, secret string, err error) {
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusOK, map[string]any{"key": stateOf(k), "secret": secret})
}

// graceBody says how long the secret before a rotation is valid.
type graceBody struct {
	Seconds *int64 `json:"grace"` // absent for an hour
}

const maxGrace = 30 * 24 * 3600 // seconds

func (s *server) rotateKey(w http.ResponseWriter, r *http.Request) {
	var body graceBody
	if !s.decode(w, r, &body) {
		return
	}
	if s.Keys == nil {
		s.fail(w, errNoKeys())
		return
	}
	grace := int64(3600)
	if body.Seconds != nil {
		grace = *body.Seconds
	}
	if grace < 0 || grace > maxGrace {
		s.fail(w, fault.Field("grace", "want 0 to %d seconds, got %d", maxGrace, grace))
		return
	}
	name := r.PathValue("key")
	all, err := s.Keys.List()
	if err != nil {
		s.fail(w, err)
		return
	}
	for i := range all { // more than one may have had the name
		if k := &all[i]; k.ID == name || k.Name == name {
			if err := auth.CheckKey(r.Context(), k); err != nil {
				s.fail(w, err)
				return
			}
		}
	}
	k, secret, err := s.Keys.Rotate(name, time.Duration(grace)*time.Second)
	s.shown(w, k, secret, err)
}

func (s *server) revokeKey(w http.ResponseWriter, r *http.Request) {
	if s.Keys == nil {
		s.fail(w, errNoKeys())
		return
	}
	k, err := s.Keys.Revoke(r.PathValue("key"))
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusOK, map[string]any{"key": stateOf(k)})
}
