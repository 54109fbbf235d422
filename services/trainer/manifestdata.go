package trainer

import (
	"fmt"

	"github.com/lamina-mesh/lamina/pkg/corpus"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Data names what is read: texts, of which a step reads random windows, or token data, of which every epoch
// reads each sequence once. All paths are on the trainer's machine.
type Data struct {
	Text string   `json:"text"` // a file
	More []string `json:"more"` // further files, in order

	// Tokens are folders that "lamina data build" has written, with one vocabulary.
	Tokens []TokenData `json:"tokens,omitempty"`
	// Examples is a file of samples that are encoded already, as JSON lines {"ids", "mask"}, such as "lamina tune"
	// and "lamina data masks --rows-only" write. The mask says which ids are trained. Samples are never divided, and
	// attention keeps them apart. Packing is "best-fit" (default) or "none": a sequence for each.
	Examples string `json:"examples,omitempty"`
	// Pairs is a file of preferences that are encoded already, as JSON lines {"prompt_ids", "chosen_ids",
	// "rejected_ids"} or {"chosen": {"ids", "mask"}, "rejected": {"ids", "mask"}}, such as "lamina tune" writes. Both
	// answers of a pair, with their prompts, fit into one sequence. Packing is that of examples.
	Pairs string `json:"pairs,omitempty"`
	// Prompts is a file of prompts, as JSON lines {"prompt_ids", "prompt", "answer"}, such as "lamina tune" writes.
	// Rewards see the text of the prompt and the right answer.
	Prompts string `json:"prompts,omitempty"`

	// Packing says how the documents of token data fill sequences: "concat" (default) puts one behind the other
	// and divides them anywhere; "best-fit" divides no document that fits, and pads what is left.
	Packing string `json:"packing,omitempty"`
	// Isolate lets a token attend only to its own document. Positions restart in every document.
	Isolate bool `json:"isolate,omitempty"`

	// ValidationFraction is the share that is not trained on: of the characters, at the end of each text; of the
	// tokens, in whole documents at the end of each folder.
	ValidationFraction float64 `json:"validation_fraction"`
	// Validation are further texts or folders of token data that are only for validation.
	Validation []string `json:"validation,omitempty"`
}

// TokenData is a folder of token data in a mixture.
type TokenData struct {
	Path string `json:"path"`
	// Weight is the folder's share of the sequences, divided by the sum of all weights. Without weights the
	// folders are mixed as if they were one, each as often as its epochs say.
	Weight float64 `json:"weight,omitempty"`
	// Epochs is how often the run may read the folder, such as 0.5 or 3. Absent: as often as it has to.
	Epochs float64 `json:"epochs,omitempty"`
}

// vocabularyTokens is the type of a vocabulary that token data brings along.
const vocabularyTokens = "tokens"

// maxFolders bounds the folders of token data, all of which stay open.
const maxFolders = 1024

// checkData checks the data. Folders are checked when they are opened.
func (m *Manifest) checkData() error {
	d, vocabulary := &m.Data, m.Vocabulary.Type
	field, samples := "", 0
	for _, f := range []struct{ name, path string }{{"data.prompts", d.Prompts}, {"data.pairs", d.Pairs},
		{"data.examples", d.Examples}} {
		if f.path != "" {
			field, samples = f.name, samples+1
		}
	}
	if samples > 0 {
		switch {
		case d.Text != "" || len(d.More) > 0 || len(d.Tokens) > 0 || samples > 1:
			return fault.Field(field, "excludes texts, token data and other samples")
		case vocabulary != vocabModel:
			return fault.Field("vocabulary.type", "%q: %s are encoded with the vocabulary of a model", vocabulary, field)
		case d.Packing != corpus.PackBestFit && d.Packing != packExamples:
			return fault.Field("data.packing", "%q is neither %s nor %s", d.Packing, corpus.PackBestFit, packExamples)
		}
		return nil
	}
	if len(d.Tokens) == 0 {
		switch {
		case vocabulary == vocabularyTokens:
			return fault.Field("vocabulary.type", "%q is for data.tokens only", vocabulary)
		case d.Text == "":
			return fault.Field("data.text", "want the name of a text file, or data.tokens")
		case d.Packing != "":
			return fault.Field("data.packing", "%q is for data.tokens only", d.Packing)
		case d.Isolate:
			return fault.Field("data.isolate", "it is for data.tokens only")
		}
		return nil
	}
	if vocabulary != vocabularyTokens && vocabulary != vocabModel {
		return fault.Field("vocabulary.type", "%q: token data has its own vocabulary", vocabulary)
	}
	if d.Text != "" || len(d.More) > 0 {
		return fault.Field("data.text", "want either texts or data.tokens")
	}
	if n := len(d.Tokens) + len(d.Validation); n > maxFolders {
		return fault.Field("data.tokens", "%d folders, at most %d are allowed", n, maxFolders)
	}
	if d.Packing != corpus.PackConcat && d.Packing != corpus.PackBestFit {
		return fault.Field("data.packing", "%q is neither %s nor %s", d.Packing, corpus.PackConcat, corpus.PackBestFit)
	}
	for i, t := range d.Tokens {
		if t.Path == "" {
			return fault.Field(fmt.Sprintf("data.tokens[%d].path", i), "want a folder of token data")
		}
	}
	return nil
}

// files lists the fields that name files or folders of the trainer's machine.
func (m *Manifest) files() []fileField {
	var out []fileField
	switch {
	case m.Data.Examples != "":
		out = append(out, fileField{"data.examples", &m.Data.Examples})
	case m.Data.Pairs != "":
		out = append(out, fileField{"data.pairs", &m.Data.Pairs})
	case m.Data.Prompts != "":
		out = append(out, fileField{"data.prompts", &m.Data.Prompts})
	case len(m.Data.Tokens) == 0:
		out = append(out, fileField{"data.text", &m.Data.Text})
	}
	for i := range m.Data.More {
		out = append(out, fileField{fmt.Sprintf("data.more[%d]", i), &m.Data.More[i]})
	}
	for i := range m.Data.Tokens {
		out = append(out, fileField{fmt.Sprintf("data.tokens[%d].path", i), &m.Data.Tokens[i].Path})
	}
	for i := range m.Data.Validation {
		out = append(out, fileField{fmt.Sprintf("data.validation[%d]", i), &m.Data.Validation[i]})
	}
	return out
}

// fileField is a field of a manifest that names a file or a folder.
type fileField struct {
	name string
	path *string
}

// resolve replaces the names of files by their real paths.
func (m *Manifest) resolve(p paths) error {
	for _, f := range m.files() {
		path, err := p.resolve(f.name, *f.path)
		if err != nil {
			return err
		}
		*f.path = path
	}
	return nil
}
