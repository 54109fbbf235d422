package tokenizer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"unicode/utf8"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

const (
	maxTrainSize  = 1 << 20 // token ids of a vocabulary
	maxTrainText  = 4 << 30 // bytes of all files
	maxTrainFiles = 1 << 12
	filePart      = 1 << 20 // bytes of a file in one event
)

// TrainVocabulary trains a vocabulary on texts and sends the vocabulary's files.
func (s *Service) TrainVocabulary(r *tokenizerv1.TrainVocabularyRequest,
	stream grpc.ServerStreamingServer[tokenizerv1.TrainVocabularyResponse]) error {
	ctx := stream.Context()
	switch {
	case r.GetSize() < 1 || r.GetSize() > maxTrainSize:
		return fault.Field("size", "%d is not within 1..%d", r.GetSize(), maxTrainSize)
	case len(r.GetTexts())+len(r.GetFiles()) == 0:
		return fault.Field("texts", "want at least one text or file")
	case len(r.GetFiles()) > maxTrainFiles:
		return fault.Field("files", "%d are more than %d", len(r.GetFiles()), maxTrainFiles)
	}
	for field, token := range map[string]string{"bos": r.GetBos(), "eos": r.GetEos()} {
		if token != "" && !slices.Contains(r.GetSpecial(), token) {
			return fault.Field(field, "%q is not among special", token)
		}
	}
	train, err := trainer(r.GetType())
	if err != nil {
		return err
	}
	texts, err := s.trainTexts(ctx, r)
	if err != nil {
		return err
	}
	var lost error
	told := -1 // last reported progress, in per cent
	v, err := train(ctx, slices.Values(texts), int(r.GetSize()), vocab.TrainOptions{
		Workers: s.workers, Special: r.GetSpecial(), BOS: r.GetBos(), EOS: r.GetEos(),
		Progress: func(done, total int) {
			part := 100 * done / max(total, 1)
			if lost == nil && part > told {
				told = part
				lost = stream.Send(
					&tokenizerv1.TrainVocabularyResponse{Event: &tokenizerv1.TrainVocabularyResponse_Progress{
						Progress: &tokenizerv1.TrainProgress{Done: uint32(done), Total: uint32(total)}}},
				)
			}
		},
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case lost != nil:
		return lost
	case err != nil:
		return fault.Wrap(fault.Invalid, err, "train a vocabulary")
	}
	return sendVocab(v, stream)
}

type trainFunc func(ctx context.Context, texts iter.Seq[string], size int, o vocab.TrainOptions) (*vocab.Vocab, error)

// trainer returns the training function of a type of vocabulary.
func trainer(kind string) (trainFunc, error) {
	switch kind {
	case "bpe":
		return vocab.TrainBPE, nil
	case "unigram":
		return vocab.TrainUnigram, nil
	}
	return nil, fault.Field("type", "%q is not supported: want bpe or unigram", kind)
}

// trainTexts iterates over the texts of a request and then over those of its files, which are read
// only from the service's folder.
func (s *Service) trainTexts(ctx context.Context, r *tokenizerv1.TrainVocabularyRequest) ([]string, error) {
	out := slices.Clone(r.GetTexts())
	if len(r.GetFiles()) == 0 {
		return out, nil
	}
	if s.texts == "" {
		return nil, fault.New(fault.FailedPrecondition, "read files: the service has no folder of texts")
	}
	root, err := os.OpenRoot(s.texts)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "open the folder of texts")
	}
	defer root.Close()
	total := int64(0)
	for _, name := range r.GetFiles() {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		text, err := readText(root, name, maxTrainText-total)
		if err != nil {
			return nil, err
		}
		total += int64(len(text))
		out = append(out, text)
	}
	return out, nil
}

func readText(root *os.Root, name string, most int64) (string, error) {
	file, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.NotFound, "find file %q: the folder of texts has none", name)
	}
	if err != nil {
		return "", &fault.Error{Code: fault.Invalid, Field: "files", Msg: "open a text", Err: err}
	}
	defer file.Close()
	if stat, err := file.Stat(); err != nil || !stat.Mode().IsRegular() {
		return "", fault.Field("files", "%q is not a regular file", name)
	}
	text, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "read file %q", name)
	}
	if int64(len(text)) > most {
		return "", fault.Field("files", "want at most %d bytes in all files", int64(maxTrainText))
	}
	if !utf8.Valid(text) {
		return "", fault.Field("files", "%q is not UTF-8", name)
	}
	return string(text), nil
}

// sendVocab sends a vocabulary's files.
func sendVocab(v *vocab.Vocab, stream grpc.ServerStreamingServer[tokenizerv1.TrainVocabularyResponse]) error {
	dir, err := os.MkdirTemp("", "lamina-vocab-")
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "write the vocabulary")
	}
	if err := sendFiles(v, dir, stream); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return os.RemoveAll(dir)
}

func sendFiles(v *vocab.Vocab, dir string,
	stream grpc.ServerStreamingServer[tokenizerv1.TrainVocabularyResponse]) error {
	if err := v.WriteHF(dir); err != nil {
		return fault.Wrap(fault.Internal, err, "write the vocabulary")
	}
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return fault.Wrap(fault.Internal, err, "read the vocabulary back")
		}
		for part := range slices.Chunk(data, filePart) {
			if err := stream.Send(&tokenizerv1.TrainVocabularyResponse{Event: &tokenizerv1.TrainVocabularyResponse_File{
				File: &tokenizerv1.TrainFile{Name: name, Data: part}}}); err != nil {
				return err
			}
		}
	}
	return nil
}
