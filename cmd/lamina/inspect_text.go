package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/lamina-mesh/lamina/internal/plural"
)

// metadataWidth is the maximum number of characters of a value that the text shows.
const metadataWidth = 60

// print writes an inspection as text.
func (r *inspection) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "PATH\t%s\nFORMAT\t%s\nPARAMETERS\t%d\nBYTES\t%d\n", r.Path, r.Format, r.Parameters, r.Bytes)
	if r.Digest != "" {
		fmt.Fprintf(w, "DIGEST\t%s\n", r.Digest)
	}
	var types []string
	for _, name := range slices.Sorted(maps.Keys(r.Types)) {
		types = append(types, fmt.Sprintf("%s x%d", name, r.Types[name]))
	}
	fmt.Fprintf(w, "TYPES\t%s\n", strings.Join(types, ", "))
	switch c := r.Config; {
	case c != nil:
		fmt.Fprintf(w, "MODEL\t%s: %s, width %d, %s on %s of %d, ", c.Architecture, plural.Of(c.Layers, "layer"),
			c.Width, plural.Of(c.Heads, "head"), plural.Of(c.KVHeads, "key/value head"), c.HeadDim)
		fmt.Fprintf(w, "feed-forward %d, vocabulary %d, context %d\n", c.FF, c.Vocab, c.Context)
		fmt.Fprintf(w, "POSITIONS\t%s\n", c.Positions)
		fmt.Fprintf(w, "TIED HEAD\t%v\n", c.TiedHead)
		if c.Window > 0 {
			fmt.Fprintf(w, "WINDOW\t%d\n", c.Window)
		}
		if len(c.Unused) > 0 {
			fmt.Fprintf(w, "NOT USED\t%s: only the language model is loaded\n", strings.Join(c.Unused, ", "))
		}
	case r.ConfigError != "":
		fmt.Fprintf(w, "MODEL\t%s\n", quoted(r.ConfigError))
	}
	switch v := r.Vocabulary; {
	case v != nil:
		fmt.Fprintf(w, "VOCABULARY\t%s of %d, begin %s, end %s, generation ends at %v, chat template %v\n",
			v.Family, v.Size, optional(v.BOS), optional(v.EOS), v.EndOfGeneration, v.ChatTemplate != "")
	case r.VocabularyError != "":
		fmt.Fprintf(w, "VOCABULARY\t%s\n", quoted(r.VocabularyError))
	}
	if len(r.Metadata) > 0 {
		fmt.Fprintln(w, "\nKEY\tVALUE")
	}
	for _, key := range slices.Sorted(maps.Keys(r.Metadata)) {
		fmt.Fprintf(w, "%s\t%s\n", quoted(key), shortened(fmt.Sprint(r.Metadata[key])))
	}
	fmt.Fprintln(w, "\nTENSOR\tTYPE\tSHAPE\tBYTES")
	for _, t := range r.Tensors {
		fmt.Fprintf(w, "%s\t%s\t%v\t%d\n", quoted(t.Name), t.DType, t.Shape, t.Bytes)
	}
	return w.Flush()
}

func optional(id *int32) string {
	if id == nil {
		return "none"
	}
	return fmt.Sprint(*id)
}

// quoted escapes the control characters of untrusted text, so that it cannot control the terminal.
func quoted(text string) string {
	q := fmt.Sprintf("%q", text)
	return q[1 : len(q)-1]
}

// shortened returns the beginning of untrusted text, quoted and on one line.
func shortened(text string) string {
	runes := []rune(text)
	if len(runes) > metadataWidth {
		return quoted(string(runes[:metadataWidth])) + "…"
	}
	return quoted(text)
}
