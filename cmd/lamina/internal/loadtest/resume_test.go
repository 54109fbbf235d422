package loadtest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/loadtest"
)

// words is the answer of resumable servers, one event each.
var words = []string{"one ", "two ", "three ", "four"}

// send writes the events of the answer from number from up to number to.
func send(w http.ResponseWriter, from, to int) {
	begin(w)
	for i := from; i < to; i++ {
		switch {
		case i < len(words):
			fmt.Fprintf(w, "id: %d\n", i)
			piece(w, words[i], "")
		case i == len(words):
			fmt.Fprintf(w, "id: %d\n", i)
			piece(w, "", "stop")
		default:
			fmt.Fprintf(w, "id: %d\n", i)
			done(w)
		}
	}
}

// resumeFrom returns the number of the first event that a request for a broken stream asks for.
func resumeFrom(r *http.Request) int {
	last := r.Header.Get("Last-Event-ID")
	if last == "" {
		return 0
	}
	n, _ := strconv.Atoi(last)
	return n + 1
}

func TestRun_BrokenStreamsAreResumedAtTheNextServer(t *testing.T) {
	const all = 6 // events: four words, the finish reason, [DONE]
	for name, first := range map[string]http.HandlerFunc{
		"cut in the middle":  func(w http.ResponseWriter, _ *http.Request) { send(w, 0, 2) },
		"cut before [DONE]":  func(w http.ResponseWriter, _ *http.Request) { send(w, 0, 4) },
		"cut before a token": func(w http.ResponseWriter, _ *http.Request) { begin(w) },
		"error event": func(w http.ResponseWriter, _ *http.Request) {
			send(w, 0, 3)
			io.WriteString(w, `data: {"error":{"message":"draining","resume_id":"x"}}`+"\n\n")
		},
		"refused":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"no answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			var id, resumable atomic.Value
			lost := serve(t, func(w http.ResponseWriter, r *http.Request) {
				var body map[string]any
				if r.Method == http.MethodPost && json.NewDecoder(r.Body).Decode(&body) == nil {
					id.Store(r.Header.Get("X-Request-Id"))
					resumable.Store(body["resumable"] == true)
				}
				first(w, r)
			})
			other := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != fmt.Sprintf("/v1/requests/%s/stream", id.Load()) {
					t.Errorf("asked for %s %s", r.Method, r.URL.Path)
				}
				send(w, resumeFrom(r), all)
			})
			var got loadtest.Sample
			r := run(t, loadtest.Config{URLs: []string{lost, other}, Resume: true, Requests: 1, Streams: 1,
				Prompts: prompts(t, 1), Observe: func(s loadtest.Sample) { got = s }})
			if r.All.OK != 1 || r.All.Resumed != 1 || resumable.Load() != true || len(id.Load().(string)) < 32 {
				t.Fatalf("got %+v, %+v", r.All, got)
			}
			if text := strings.Join(got.Text.Choices, "|"); text != strings.Join(words, "") {
				t.Errorf("the text is %q", text)
			}
		})
	}
}

func TestRun_RequestsThatNoServerKnowsAreSentAgain(t *testing.T) {
	lost := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	var asked []string
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method)
		if r.Method == http.MethodGet {
			http.Error(w, "unknown request", http.StatusNotFound)
			return
		}
		send(w, 0, 6)
	})
	g := run(t, loadtest.Config{URLs: []string{lost, other}, Resume: true, Requests: 1, Streams: 1,
		Prompts: prompts(t, 1)}).All
	if g.OK != 1 || strings.Join(asked, " ") != "GET POST" {
		t.Errorf("asked %v, got %+v", asked, g)
	}
}

func TestRun_WithoutResumeNothingIsAskedTwice(t *testing.T) {
	n := 0
	cut := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n++
		var body map[string]any
		if json.NewDecoder(r.Body).Decode(&body) != nil || body["resumable"] != nil {
			t.Errorf("the request is %v", body)
		}
		send(w, 0, 2)
	})
	g := run(t, loadtest.Config{URLs: []string{cut}, Requests: 1, Streams: 1, Prompts: prompts(t, 1)}).All
	if g.Failed != 1 || n != 1 {
		t.Errorf("sent %d requests, got %+v", n, g)
	}
}
