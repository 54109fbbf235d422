package session_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/session"
)

// TestSession_Transcripts runs testdata/*.txt. A line is an event or a query, and the text after
// "=>" is the expected result.
func TestSession_Transcripts(t *testing.T) {
	files, err := os.ReadDir("testdata")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile("testdata/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		var s *session.Session
		for n, line := range strings.Split(string(text), "\n") {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			command, want, _ := strings.Cut(line, " => ")
			if got := play(t, &s, strings.Fields(command)); got != want {
				t.Errorf("%s:%d: %s => %s, want %s", file.Name(), n+1, command, got, want)
			}
		}
	}
}

func play(t *testing.T, s **session.Session, words []string) string {
	t.Helper()
	var a, b int
	fmt.Sscan(strings.Join(words[1:], " "), &a, &b)
	switch words[0] {
	case "new":
		log := make([]int32, a)
		for i := range log {
			log[i] = int32(100 + i)
		}
		*s = session.New(log)
		return ""
	case "next":
		rows, ok := (*s).Next(a)
		if !ok {
			return "nothing"
		}
		return fmt.Sprintf("pos %d ids %v logits %v", rows.Pos, rows.IDs, rows.Logits)
	case "resend":
		(*s).Resend(a)
		return ""
	case "rewind":
		var log []int32
		for _, w := range words[1:] {
			id, _ := strconv.Atoi(w)
			log = append(log, int32(id))
		}
		(*s).Rewind(log)
		return ""
	case "token":
		return fmt.Sprint((*s).Token(a, int32(b)))
	case "ahead":
		var drafts []int32
		for _, word := range words[2:] {
			id, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			drafts = append(drafts, int32(id))
		}
		rows, ok := (*s).NextWithDrafts(a, drafts)
		if !ok {
			return "nothing"
		}
		return fmt.Sprintf("pos %d ids %v logits %v drafts %d", rows.Pos, rows.IDs, rows.Logits, rows.Drafts)
	case "ready":
		return fmt.Sprint((*s).Ready())
	case "waiting":
		return fmt.Sprint((*s).Waiting())
	case "end":
		(*s).End()
		return ""
	}
	t.Fatalf("unknown command %q", words[0])
	return ""
}

func TestStopper_ShowsTextBeforeTheFirstStopString(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		letters := func(n int) string {
			b := make([]byte, n)
			for i := range b {
				b[i] = "ab"[r.IntN(2)]
			}
			return string(b)
		}
		text := letters(r.IntN(30))
		stops := []string{letters(1 + r.IntN(6)), letters(1 + r.IntN(6))}
		// The reference: find the first prefix that contains a stop string, and the text before
		// that string.
		want, wantStop := text, false
		for end := 1; end <= len(text) && !wantStop; end++ {
			for _, stop := range stops {
				if at := strings.Index(text[:end], stop); at >= 0 && (!wantStop || at < len(want)) {
					want, wantStop = text[:at], true
				}
			}
		}
		s := session.NewStopper(stops)
		var got strings.Builder
		stopped := false
		for i := 0; i < len(text) && !stopped; i++ { // one byte per token, the hardest case
			var show string
			show, stopped = s.Push(text[i : i+1])
			got.WriteString(show)
		}
		if !stopped {
			got.WriteString(s.Flush())
		}
		if got.String() != want || stopped != wantStop {
			t.Fatalf(
				"text %q, stops %q: showed %q (stopped %v), want %q (%v)", text, stops, got.String(), stopped, want,
				wantStop,
			)
		}
	}
}
