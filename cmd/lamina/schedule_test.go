package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/schedule"
)

// Charts of small and large schedules are well-formed XML.
func TestScheduleSVG_HasOneRectangleForEachAction(t *testing.T) {
	for _, c := range []schedule.Config{
		{Name: schedule.NameGPipe, Stages: 1, Spans: 1, Micro: 1},
		{Name: schedule.NameInterleaved, Stages: 4, Spans: 3, Micro: 9},
		{Name: schedule.NameZeroBubble, Stages: 16, Spans: 1, Micro: 200},
	} {
		lists, err := c.All()
		if err != nil {
			t.Fatal(err)
		}
		r, err := schedule.Simulate(lists, schedule.Costs{Forward: 1, Input: 0.9, Weight: 1.2})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := scheduleSVG(&out, c, r); err != nil {
			t.Fatal(err)
		}
		actions, want := strings.Count(out.String(), `stroke-width="0.8"`), 0
		for _, l := range lists {
			want += len(l)
		}
		if actions != want {
			t.Errorf("%+v: %d rectangles for %d actions", c, actions, want)
		}
		for d := xml.NewDecoder(&out); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%+v: %v", c, err)
			}
		}
	}
}
