package console

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/lamina-mesh/lamina/pkg/auth"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	"github.com/lamina-mesh/lamina/services/router/httpapi"
)

// StoredModel is a model of the router's machine.
type StoredModel struct {
	Name     string    `json:"name"`
	Digest   string    `json:"digest"`
	Bytes    int64     `json:"bytes"`
	Files    int       `json:"files"`
	Source   string    `json:"source,omitempty"`
	LastUsed time.Time `json:"last_used,omitzero"`
	InUse    bool      `json:"in_use"`
	Loadable bool      `json:"loadable"` // Load can serve it, and has not been called for it
}

// PullRequest names a model to fetch.
type PullRequest struct {
	Source   string   `json:"source"`   // an address that begins with https:// or http://, or OWNER/NAME of a repository
	Name     string   `json:"name"`     // in the store; empty for that of the source
	Revision string   `json:"revision"` // of a repository; empty for main
	Include  []string `json:"include"`  // patterns of weight files, where a repository has several models
}

// Pull is the state of fetching a model.
type Pull struct {
	ID     string `json:"id"`
	Source string `json:"source"`
	Name   string `json:"name,omitempty"`  // once it is known
	File   string `json:"file,omitempty"`  // that is being fetched
	Done   int64  `json:"done"`            // bytes
	Total  int64  `json:"total"`           // bytes; 0 while unknown
	State  string `json:"state"`           // running, done, failed or canceled
	Error  string `json:"error,omitempty"` // of a failed pull
}

// Store is the store of models of the router's machine, and what fetches models into it. Its errors are faults.
type Store interface {
	Models() ([]StoredModel, error)
	Remove(ctx context.Context, name string) error
	// Load serves a model on shards of this process that take their layers from the placer.
	Load(name string) error
	// Pull begins to fetch a model, which goes on when the caller has gone.
	Pull(r PullRequest) (Pull, error)
	// Watch reports all pulls, at once and after each change, until ctx ends or send fails.
	Watch(ctx context.Context, send func([]Pull) error) error
	// Cancel ends a pull that runs, and forgets one that has ended.
	Cancel(id string) error
}

// store returns the store, or answers that there is none.
func (s *server) store(w http.ResponseWriter) Store {
	if s.Store == nil {
		s.fail(w, fault.New(fault.FailedPrecondition, "open the store of models: this router has none: "+
			"run lamina pull where the shards are"))
	}
	return s.Store
}

func (s *server) stored(w http.ResponseWriter, _ *http.Request) {
	st := s.store(w)
	if st == nil {
		return
	}
	models, err := st.Models()
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusOK, map[string]any{"models": append([]StoredModel{}, models...)})
}

// done answers a call without a result.
func (s *server) done(w http.ResponseWriter, err error) {
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusOK, struct{}{})
}

func (s *server) removeModel(w http.ResponseWriter, r *http.Request) {
	if st := s.store(w); st != nil {
		s.done(w, st.Remove(r.Context(), r.PathValue("model")))
	}
}

func (s *server) loadModel(w http.ResponseWriter, r *http.Request) {
	if st := s.store(w); st != nil {
		s.done(w, st.Load(r.PathValue("model")))
	}
}

// checkEvery is the time between two looks whether the key of a watcher is still valid.
const checkEvery = time.Second

func (s *server) pulls(w http.ResponseWriter, r *http.Request) {
	st := s.store(w)
	if st == nil {
		return
	}
	stream := httpapi.NewStream(w, httpapi.EventStream, s.WriteTimeout)
	ctx, end := context.WithCancel(r.Context())
	var checking sync.WaitGroup
	defer checking.Wait()
	defer end()
	checking.Go(func() { // a pull may change nothing for long, and its watcher must not outlive its key
		defer end()
		tick := time.NewTicker(checkEvery)
		defer tick.Stop()
		for auth.From(ctx).Check() == nil {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	err := st.Watch(ctx, func(pulls []Pull) error {
		text, err := json.Marshal(map[string]any{"pulls": append([]Pull{}, pulls...)})
		if err != nil {
			return fault.Wrap(fault.Internal, err, "write pulls as JSON")
		}
		return stream.Write(append(append([]byte("data: "), text...), "\n\n"...))
	})
	s.endStream(w, stream, err)
}

func (s *server) startPull(w http.ResponseWriter, r *http.Request) {
	var body PullRequest
	if !s.decode(w, r, &body) {
		return
	}
	st := s.store(w)
	if st == nil {
		return
	}
	p, err := st.Pull(body)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusAccepted, p)
}

func (s *server) cancelPull(w http.ResponseWriter, r *http.Request) {
	if st := s.store(w); st != nil {
		s.done(w, st.Cancel(r.PathValue("pull")))
	}
}

const (
	maxConfig    = 1 << 20   // bytes of adapter_config.json
	adapterPiece = 256 << 10 // bytes of a frame
)

// loadAdapter loads an adapter. Its query names model and name, and either digest, the one of an earlier adapter or
// "previous", or config and weights: the lengths of the two files, which the body has one after the other.
func (s *server) loadAdapter(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	open := &routerv1.LoadAdapterOpen{Model: q.Get("model"), Name: q.Get("name"), Digest: q.Get("digest"),
		AnyBase: q.Get("any_base") == "true"}
	if open.GetDigest() == "" {
		config, err := strconv.ParseUint(q.Get("config"), 10, 31)
		if err != nil || config == 0 || config > maxConfig {
			s.fail(w, fault.Field("config", "want 1..%d bytes of adapter_config.json, got %.40q", maxConfig,
				q.Get("config")))
			return
		}
		if open.Size, err = strconv.ParseUint(q.Get("weights"), 10, 62); err != nil || open.GetSize() == 0 {
			s.fail(w, fault.Field("weights", "want the bytes of adapter_model.safetensors, got %.40q",
				q.Get("weights")))
			return
		}
		open.Config = make([]byte, config)
	}
	control := http.NewResponseController(w)
	read := func(piece []byte) (int, error) {
		// Not every writer has deadlines; where they are missing the server's own limits hold.
		if err := control.SetReadDeadline(time.Now().Add(s.WriteTimeout)); err != nil &&
			!errors.Is(err, http.ErrNotSupported) {
			return 0, fault.Wrap(fault.Canceled, err, "limit read")
		}
		n, err := io.ReadFull(r.Body, piece)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return n, &fault.Error{Code: fault.Invalid, Field: "body", Msg: "it ended before the adapter was complete",
				Err: err}
		}
		return n, nil
	}
	// unlimited ends the limit once all was read: the server goes on reading, to notice that the client has gone, and a
	// limit that passes meanwhile would count as that.
	unlimited := func() error {
		if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return fault.Wrap(fault.Canceled, err, "end limit of read")
		}
		return nil
	}
	begun, left := false, open.GetSize()
	resp, err := s.backend.LoadAdapter(r.Context(), func() (*routerv1.LoadAdapterRequest, error) {
		if !begun {
			begun = true
			if n, err := read(open.GetConfig()); err != nil || n < len(open.GetConfig()) {
				return nil, errors.Join(fault.Field("body", "it ended within adapter_config.json"), err)
			}
			if left == 0 { // an earlier adapter, without files
				if err := unlimited(); err != nil {
					return nil, err
				}
			}
			return &routerv1.LoadAdapterRequest{Frame: &routerv1.LoadAdapterRequest_Open{Open: open}}, nil
		}
		piece := make([]byte, min(left, adapterPiece))
		n, err := read(piece)
		if err != nil {
			return nil, err
		}
		if left -= uint64(n); left == 0 {
			if err := unlimited(); err != nil {
				return nil, err
			}
		}
		return &routerv1.LoadAdapterRequest{Frame: &routerv1.LoadAdapterRequest_Data{Data: piece[:n]}}, nil
	})
	if err != nil {
		s.fail(w, err)
		return
	}
	text, err := marshal(resp)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusOK, json.RawMessage(text))
}

func (s *server) unloadAdapter(w http.ResponseWriter, r *http.Request) {
	resp, err := s.backend.UnloadAdapter(r.Context(), &routerv1.UnloadAdapterRequest{
		Model: r.URL.Query().Get("model"), Name: r.PathValue("adapter")})
	if err != nil {
		s.fail(w, err)
		return
	}
	s.reply(w, http.StatusOK, map[string]uint32{"requests": resp.GetRequests()})
}
