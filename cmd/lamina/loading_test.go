package main

import (
	"io"
	"strings"
	"testing"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// Reports of a model that is being loaded are on standard error, and not in the text.
func TestCollect_ShowsTheLoadingOfTheModel(t *testing.T) {
	events := []*routerv1.GenerateResponse{
		{Event: &routerv1.GenerateResponse_Loading{Loading: &routerv1.ModelLoading{Model: "chat", DoneBytes: 1 << 20,
			TotalBytes: 4 << 20, State: "no shard holds layers 2-4"}}},
		{Event: &routerv1.GenerateResponse_Started{Started: &routerv1.Started{Model: "chat"}}},
		{Event: &routerv1.GenerateResponse_Token{Token: &routerv1.TokenEvent{Text: "hi"}}},
		{Event: &routerv1.GenerateResponse_Finished{Finished: &routerv1.Finished{}}},
	}
	var out, notes strings.Builder
	answer, err := collect(func() (event, error) {
		if len(events) == 0 {
			return nil, io.EOF
		}
		e := events[0]
		events = events[1:]
		return e, nil
	}, &out, newLoadNotes(&notes))
	const want = "loading chat, 1.0 MiB of 4.0 MiB: no shard holds layers 2-4\n"
	if err != nil || answer.Text != "hi" || out.String() != "hi" || notes.String() != want {
		t.Errorf("%q, %v; printed %q and %q, want %q", answer.Text, err, out.String(), notes.String(), want)
	}
}

func TestLoadNotes_ALineOnATerminalAndFewElsewhere(t *testing.T) {
	m := &routerv1.ModelLoading{Model: "m", TotalBytes: 2 << 20, State: "s"}
	now := time.Unix(1000, 0)
	var plain, drawn strings.Builder
	lines, terminal := newLoadNotes(&plain), &loadNotes{out: &drawn, terminal: true}
	for i := range 11 {
		m.DoneBytes = uint64(i) << 17
		lines.show(m, now.Add(time.Duration(i)*time.Second))
		terminal.show(m, now.Add(time.Duration(i)*time.Second))
	}
	lines.end()
	terminal.end()
	terminal.end()
	if got := strings.Count(plain.String(), "\n"); got != 3 {
		t.Errorf("%d lines in ten seconds: %s", got, plain.String())
	}
	if text := drawn.String(); strings.Contains(text, "\n") || strings.Count(text, "\rloading m, ") != 11 ||
		!strings.HasSuffix(text, "\x1b[K\r\x1b[K") {
		t.Errorf("on a terminal: %q", text)
	}
}
