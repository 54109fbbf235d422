package trainer

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"

	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/model"
	"github.com/lamina-mesh/lamina/pkg/tensor"
	"github.com/lamina-mesh/lamina/pkg/weights"
)

// export writes the trained model, its vocabulary and its manifest.
func (t *training) export() error {
	if t.run.plan.lowRank != nil {
		if err := t.exportAdapter(); err != nil {
			return fault.Wrap(fault.Internal, err, "export adapter")
		}
		return nil
	}
	dir := filepath.Join(t.run.dir, "model")
	dtype, err := tensor.Parse(t.run.manifest.DType)
	if err != nil {
		return err
	}
	if err := t.exportWeights(dir, dtype); err != nil {
		return fault.Wrap(fault.Internal, err, "export model")
	}
	if err := t.data.vocab.WriteHF(dir); err != nil {
		return fault.Wrap(fault.Internal, err, "export vocabulary")
	}
	if err := addChatTemplate(filepath.Join(dir, "tokenizer_config.json"), t.run.manifest.ChatTemplate); err != nil {
		return fault.Wrap(fault.Internal, err, "export chat template")
	}
	if err := weights.WriteFile(filepath.Join(dir, "manifest.json"), func(w io.Writer) error {
		_, err := w.Write(t.run.raw)
		return err
	}); err != nil {
		return err
	}
	digest := t.last.Weights
	report, err := json.MarshalIndent(map[string]any{
		"run": t.run.manifest.Name, "steps": t.last.Step, "validation_loss": t.validation,
		"validation_bits_per_byte": t.bits, "weights_sha256": digest,
		"manifest_sha256": t.run.hash,
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := weights.WriteFile(filepath.Join(dir, "training.json"), func(w io.Writer) error {
		_, err := w.Write(append(report, '\n'))
		return err
	}); err != nil {
		return err
	}
	t.run.update(func(s *trainerv1.Run) { s.ModelPath, s.WeightsDigest = dir, digest })
	return nil
}

// exportWeights writes the weights of the last checkpoint in the form of Hugging Face's libraries. It
// verifies them first.
func (t *training) exportWeights(dir string, dtype tensor.DType) error {
	var all []model.Exported
	for _, f := range t.last.Files {
		if f.Kind != checkpoint.Weight {
			continue
		}
		for _, w := range f.Tensors {
			if err := t.last.Read(f.Kind, w.Name, func([]byte) error { return nil }); err != nil {
				return err
			}
			all = append(all, model.Exported{Name: w.Name, Shape: w.Shape, Open: func() (model.Values, error) {
				return t.last.OpenTensor(f.Kind, w.Name)
			}})
		}
	}
	return model.ExportFiles(dir, t.spec, all, model.ExportOptions{DType: dtype})
}

// addChatTemplate adds a chat template to a tokenizer_config.json.
func addChatTemplate(path, template string) error {
	if template == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	config["chat_template"] = template
	return weights.WriteFile(path, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(config)
	})
}
