package tuning

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Report counts what samples were read and what happened to them.
type Report struct {
	Formats map[string]int `json:"formats"` // rows by their form
	Samples int            `json:"samples"` // that are trained, or pairs
	Tokens  int            `json:"tokens"`  // of those samples
	Trained int            `json:"trained"` // targets
	Longest int            `json:"longest"` // ids of the longest sample, or of the longest pair
	Refused int            `json:"refused"` // rows that are not trained
	Reasons map[Reason]int `json:"reasons,omitempty"`
	Notes   []Note         `json:"-"`
}

// NewReport returns an empty report.
func NewReport() *Report { return &Report{Formats: map[string]int{}, Reasons: map[Reason]int{}} }

// Add counts a sample. It reports whether the sample is trained.
func (r *Report) Add(s *Sample) bool {
	_, refused := s.Refused()
	return r.add(s.Format, s.Notes, refused, s)
}

// AddPair counts a pair of answers as one row. It reports whether the pair is trained.
func (r *Report) AddPair(p *Pair) bool {
	var notes []Note
	for _, side := range p.sides() {
		for _, n := range side.sample.Notes {
			n.Detail = strings.TrimSpace(side.name + " " + n.Detail)
			notes = append(notes, n)
		}
	}
	_, refused := p.Refused()
	return r.add(p.Chosen.Format, notes, refused, p.Chosen, p.Rejected)
}

// add counts a row.
func (r *Report) add(format string, notes []Note, refused bool, samples ...*Sample) bool {
	if format != "" {
		r.Formats[format]++
	}
	r.Notes = append(r.Notes, notes...)
	seen := map[Reason]bool{}
	for _, n := range notes {
		if !seen[n.Reason] { // a row counts once for each reason
			r.Reasons[n.Reason]++
		}
		seen[n.Reason] = true
	}
	if refused {
		r.Refused++
		return false
	}
	r.Samples++
	ids := 0
	for _, s := range samples {
		ids += len(s.IDs)
		r.Trained += s.Trained()
	}
	r.Tokens += ids
	r.Longest = max(r.Longest, ids)
	return true
}

// Unreadable counts a row that could not be read.
func (r *Report) Unreadable(line int, err error) *Sample {
	s := &Sample{Line: line}
	s.note(-1, Unreadable, true, "%v", err)
	r.Add(s)
	return s
}

// longestDetail is how much of an explanation the report shows, in bytes.
const longestDetail = 240

// String returns the report as lines of text: totals, forms, and every reason with its first lines and an explanation.
func (r *Report) String() string {
	var b strings.Builder
	var forms []string
	for f, n := range r.Formats {
		forms = append(forms, fmt.Sprintf("%s %d", f, n))
	}
	slices.Sort(forms)
	share := 0.0
	if r.Tokens > 0 {
		share = 100 * float64(r.Trained) / float64(r.Tokens)
	}
	fmt.Fprintf(&b, "%d samples (%s), %d tokens, %d trained (%.1f %%), the longest has %d\n", r.Samples,
		strings.Join(forms, ", "), r.Tokens, r.Trained, share, r.Longest)
	var reasons []Reason
	for reason := range r.Reasons {
		reasons = append(reasons, reason)
	}
	slices.SortFunc(reasons, func(x, y Reason) int {
		return cmp.Or(cmp.Compare(r.Reasons[y], r.Reasons[x]), cmp.Compare(x, y))
	})
	for _, reason := range reasons {
		var lines []string
		detail := ""
		for _, n := range r.Notes {
			if n.Reason != reason {
				continue
			}
			detail = cmp.Or(detail, n.Detail)
			if text := fmt.Sprint(n.Line); len(lines) < 10 && !slices.Contains(lines, text) {
				lines = append(lines, text)
			}
		}
		more := ""
		if r.Reasons[reason] > len(lines) {
			more = ", ..."
		}
		fmt.Fprintf(&b, "%s: %d (line %s%s)\n", reason, r.Reasons[reason], strings.Join(lines, ", "), more)
		if detail != "" {
			fmt.Fprintf(&b, "  %s\n", shortened(detail))
		}
	}
	return b.String()
}

// shortened cuts a text at the end of a character.
func shortened(text string) string {
	if len(text) <= longestDetail {
		return text
	}
	return strings.ToValidUTF8(text[:longestDetail], "") + "..."
}
