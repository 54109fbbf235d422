package pull

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/store"
)

// File is a file of a source.
type File struct {
	Path      string // in the model
	Size      int64
	SHA256    *store.Sum // nil if the source does not tell
	ChunkSize int64      // 0 if the source does not tell
	Sums      store.Sums // of its chunks; nil if the source does not tell

	at     string // address or path at the source
	tag    string // what changes with the content, such as an ETag; may be empty
	whole  bool   // the source has no ranges
	origin string // names the content if there is no digest
}

// AmbiguousError reports a source with several GGUF models.
type AmbiguousError struct {
	Source string
	Models []string // of each the only or the first file
}

// Error lists the models.
func (e *AmbiguousError) Error() string {
	const most = 20
	shown := e.Models
	if len(shown) > most {
		shown = append(slices.Clone(shown[:most]), fmt.Sprintf("and %d more", len(shown)-most))
	}
	return fmt.Sprintf("pull %s: it has %d GGUF models, choose one with --include: %s", e.Source, len(e.Models),
		strings.Join(shown, ", "))
}

// FaultCode returns Invalid.
func (e *AmbiguousError) FaultCode() fault.Code { return fault.Invalid }

// companions are the files besides weights that determine what a model says.
var companions = []string{
	"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
	"special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
	"chat_template.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", indexName,
}

const indexName = "model.safetensors.index.json"

// splitName matches the names of the parts of a split GGUF file.
var splitName = regexp.MustCompile(`^(.+)-(\d{5})-of-(\d{5})\.gguf$`)

// Choose picks the files of one model. With safetensors files it is these, and the files that describe them. Without,
// it is one GGUF model, whole or split; the error is an *AmbiguousError if there are several. include are patterns, as
// in path.Match, of which a weight file must match one; without any, all weight files count.
func Choose(source string, files []File, include []string) ([]File, error) {
	for _, pattern := range include {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fault.Field("include", "%q is no pattern", pattern)
		}
	}
	var tensors, beside []File
	models := map[string][]File{} // GGUF models by the name of their set
	var sets []string
	for _, f := range files {
		switch base := path.Base(f.Path); {
		case slices.Contains(companions, f.Path) || path.Ext(f.Path) == ".tiktoken" && base == f.Path:
			beside = append(beside, f)
		case path.Ext(base) == ".safetensors":
			// Mistral's repositories have the same weights once more under this name.
			again := strings.HasPrefix(base, "consolidated") && len(include) == 0
			if base == f.Path && !again && matches(include, f.Path) {
				tensors = append(tensors, f)
			}
		case path.Ext(base) == ".gguf":
			if strings.Contains(strings.ToLower(base), "mmproj") || !matches(include, f.Path) {
				continue
			}
			set := f.Path
			if m := splitName.FindStringSubmatch(base); m != nil {
				set = path.Join(path.Dir(f.Path), m[1]+" of "+m[3])
			}
			if len(models[set]) == 0 {
				sets = append(sets, set)
			}
			models[set] = append(models[set], f)
		}
	}
	switch {
	case len(tensors) > 0:
		return append(tensors, beside...), nil
	case len(sets) == 0:
		what := "safetensors or GGUF files"
		if len(include) > 0 {
			what += " that match " + strings.Join(include, " or ")
		}
		return nil, fault.New(fault.NotFound, "pull %s: it has no %s", source, what)
	case len(sets) > 1:
		slices.Sort(sets)
		e := &AmbiguousError{Source: source}
		for _, set := range sets {
			e.Models = append(e.Models, models[set][0].Path)
		}
		return nil, e
	}
	chosen := models[sets[0]]
	for i := range chosen { // repositories put split models into folders of their own
		chosen[i].Path = path.Base(chosen[i].Path)
	}
	return chosen, nil
}

// matches reports whether a path or its last part matches a pattern, or there is none.
func matches(include []string, p string) bool {
	if len(include) == 0 {
		return true
	}
	return slices.ContainsFunc(include, func(pattern string) bool {
		whole, _ := path.Match(pattern, p)
		base, _ := path.Match(pattern, path.Base(p))
		return whole || base
	})
}

// NameOf makes the name of a model out of the last part of a path or address.
func NameOf(text string) string {
	base := path.Base(strings.TrimRight(strings.ReplaceAll(text, `\`, "/"), "/"))
	if m := splitName.FindStringSubmatch(base); m != nil {
		base = m[1]
	}
	base = strings.TrimSuffix(strings.TrimSuffix(base, ".gguf"), ".safetensors")
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r) {
			return r
		}
		return '-'
	}, base)
	return strings.TrimLeft(name, "._-")
}
