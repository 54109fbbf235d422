package report

import (
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
)

// last returns the last value of a field, and the step that it is of.
func (r *Run) last(field string) (value float64, step float64, ok bool) {
	for _, s := range slices.Backward(r.Steps) {
		if v, ok := s[field]; ok {
			return v, s["step"], true
		}
	}
	return 0, 0, false
}

// best returns the smallest value of a field that is not 0.
func (r *Run) best(field string) (value float64, step float64, ok bool) {
	for _, s := range r.Steps {
		if v := s[field]; v != 0 && (!ok || v < value) {
			value, step, ok = v, s["step"], true
		}
	}
	return value, step, ok
}

// median returns the median of a field over the steps that have it.
func (r *Run) median(field string) (float64, bool) {
	var all []float64
	for _, s := range r.Steps {
		if v, ok := s[field]; ok {
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return 0, false
	}
	slices.Sort(all)
	return all[len(all)/2], true
}

// events returns the number of events of a kind; empty for none.
func (r *Run) events(kind string) string {
	n := 0
	for _, e := range r.Events {
		if e.Kind == kind {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// figure is a row of the table of figures: a value for each run.
type figure struct {
	Name   string
	Values []string
}

// figures returns the rows of the table. A row that no run has is left out.
func figures(runs []*Run) []figure {
	at := func(format string) func(v, step float64, ok bool) string {
		return func(v, step float64, ok bool) string {
			if !ok {
				return ""
			}
			return fmt.Sprintf(format, v, step)
		}
	}
	middle := func(field, format string, factor float64) func(*Run) string {
		return func(r *Run) string {
			v, ok := r.median(field)
			if !ok {
				return ""
			}
			return fmt.Sprintf(format, v*factor)
		}
	}
	var out []figure
	for _, row := range []struct {
		name  string
		value func(*Run) string
	}{
		{"last step", func(r *Run) string { v, _, _ := r.last("step"); return fmt.Sprintf("%.0f", v) }},
		{"training loss, nats a token", func(r *Run) string { return at("%.4f (step %.0f)")(r.last("loss")) }},
		{"last validation loss, nats a token", func(r *Run) string { return at("%.4f (step %.0f)")(r.last("validation_loss")) }},
		{"best validation loss, nats a token", func(r *Run) string { return at("%.4f (step %.0f)")(r.best("validation_loss")) }},
		{"last validation, bits a byte", func(r *Run) string { return at("%.4f (step %.0f)")(r.last("validation_bits_per_byte")) }},
		{"tokens a second", func(r *Run) string { return at("%.0f (up to step %.0f)")(r.last("tokens_per_second")) }},
		{"median step, ms", middle("step_ms", "%.2f", 1)},
		{"median bubble, %", middle("bubble", "%.1f", 100)},
		{"simulated bubble, %", middle("simulated_bubble", "%.1f", 100)},
		{"median bytes of gradients a step", middle("gradient_bytes", "%.0f", 1)},
		{"of what float32 would send, one in", middle("gradient_ratio", "%.2f", 1)},
		{"median error of the wire type", middle("gradient_error", "%.3g", 1)},
		{"median bytes of gradients between replicas of a machine", middle("direct_bytes", "%.0f", 1)},
		{"replicas lost", func(r *Run) string { return r.events("lost") }},
		{"replicas left", func(r *Run) string { return r.events("left") }},
		{"replicas joined", func(r *Run) string { return r.events("joined") }},
		{"replicas quarantined", func(r *Run) string { return r.events("quarantined") }},
		{"steps skipped", func(r *Run) string { return r.events("skip") }},
		{"steps rolled back", func(r *Run) string { return r.events("rollback") }},
		{"SHA-256 of the manifest", func(r *Run) string { return r.Digest }},
	} {
		f := figure{Name: row.name}
		some := false
		for _, r := range runs {
			v := row.value(r)
			some = some || v != ""
			f.Values = append(f.Values, v)
		}
		if some {
			out = append(out, f)
		}
	}
	return append(out, table(runs, func(r *Run) map[string]string { return r.Final }, false)...)
}

// settings returns the fields of the manifests: all of one run, and those in which several differ.
func settings(runs []*Run) []figure {
	return table(runs, func(r *Run) map[string]string { return r.Manifest }, len(runs) > 1)
}

// table returns the rows of the fields of all runs, in the order of their names.
func table(runs []*Run, fields func(*Run) map[string]string, different bool) []figure {
	names := map[string]bool{}
	for _, r := range runs {
		for name := range fields(r) {
			names[name] = true
		}
	}
	var out []figure
	for _, name := range slices.Sorted(maps.Keys(names)) {
		f := figure{Name: name}
		for _, r := range runs {
			f.Values = append(f.Values, fields(r)[name])
		}
		if !different || slices.ContainsFunc(f.Values, func(v string) bool { return v != f.Values[0] }) {
			out = append(out, f)
		}
	}
	return out
}

// WriteCSV writes a line for each step of each run. Its columns are the run and all fields of any step; a
// field that a step does not have is empty.
func WriteCSV(w io.Writer, runs []*Run) error {
	fields := map[string]bool{}
	for _, r := range runs {
		for _, s := range r.Steps {
			for name := range s {
				fields[name] = true
			}
		}
	}
	delete(fields, "step")
	columns := append([]string{"step"}, slices.Sorted(maps.Keys(fields))...)
	out := csv.NewWriter(w)
	if err := out.Write(append([]string{"run"}, columns...)); err != nil {
		return err
	}
	for _, r := range runs {
		for _, s := range r.Steps {
			row := []string{r.Name}
			for _, c := range columns {
				text := ""
				if v, ok := s[c]; ok {
					text = strconv.FormatFloat(v, 'g', -1, 64)
				}
				row = append(row, text)
			}
			if err := out.Write(row); err != nil {
				return err
			}
		}
	}
	out.Flush()
	return out.Error()
}
