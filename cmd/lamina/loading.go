package main

import (
	"fmt"
	"io"
	"time"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// noteEvery is the time between two plain lines about the loading of a model.
const noteEvery = 5 * time.Second

// loadNotes shows how far the loading of a model is that a request waits for: on a terminal a line that is drawn again
// and again, elsewhere plain lines.
type loadNotes struct {
	out      io.Writer
	terminal bool
	drawn    bool
	noted    time.Time
}

func newLoadNotes(out io.Writer) *loadNotes {
	return &loadNotes{out: out, terminal: newProgress(out).terminal}
}

// show shows a report.
func (n *loadNotes) show(m *routerv1.ModelLoading, now time.Time) {
	line := fmt.Sprintf("loading %s, %s of %s: %s", m.GetModel(), bytesOf(m.GetDoneBytes()), bytesOf(m.GetTotalBytes()),
		m.GetState())
	switch {
	case n.terminal:
		fmt.Fprintf(n.out, "\r%s\x1b[K", line) // and erase what is left of a longer line
		n.drawn = true
	case now.Sub(n.noted) >= noteEvery:
		n.noted = now
		fmt.Fprintln(n.out, line)
	}
}

// end erases the line.
func (n *loadNotes) end() {
	if n.drawn {
		fmt.Fprint(n.out, "\r\x1b[K")
		n.drawn = false
	}
}
