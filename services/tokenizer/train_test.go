package tokenizer_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// train runs TrainVocabulary and returns the files.
func train(t *testing.T, c tokenizerv1.TokenizerServiceClient,
	r *tokenizerv1.TrainVocabularyRequest) (files map[string][]byte, progress []uint32, err error) {
	t.Helper()
	stream, err := c.TrainVocabulary(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string][]byte{}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return files, progress, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if p := e.GetProgress(); p != nil {
			progress = append(progress, p.GetDone())
		}
		if f := e.GetFile(); f != nil {
			files[f.GetName()] = append(files[f.GetName()], f.GetData()...)
		}
	}
}

func TestService_TrainVocabulary(t *testing.T) {
	dir := t.TempDir()
	text := strings.Repeat("the quick brown fox jumps over the lazy dog, and the dog sleeps. ", 40)
	if err := os.WriteFile(filepath.Join(dir, "fox.txt"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, c := serveWith(t, tokenizer.Config{Texts: dir})
	files, progress, err := train(t, c, &tokenizerv1.TrainVocabularyRequest{
		Type: "bpe", Size: 300, Texts: []string{"the end"}, Files: []string{"fox.txt"},
		Special: []string{"<s>", "</s>"}, Bos: "<s>", Eos: "</s>"})
	if err != nil {
		t.Fatal(err)
	}
	if len(progress) < 2 || !slices.IsSorted(progress) {
		t.Errorf("progress %v", progress)
	}
	want, err := vocab.TrainBPE(t.Context(), slices.Values([]string{"the end", text}), 300,
		vocab.TrainOptions{Special: []string{"<s>", "</s>"}, BOS: "<s>", EOS: "</s>"})
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if err := want.WriteHF(out); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		file, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(file, files[name]) {
			t.Errorf("%s differs: %d bytes, want %d", name, len(files[name]), len(file))
		}
	}
}

func TestService_TrainVocabularyRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bad"), []byte("\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	_, c := serveWith(t, tokenizer.Config{Texts: dir})
	_, without := serveWith(t, tokenizer.Config{})
	type request = tokenizerv1.TrainVocabularyRequest
	for name, r := range map[string]*request{
		"type": {Type: "x", Size: 300, Texts: []string{"a"}}, "size": {Type: "bpe", Texts: []string{"a"}},
		"huge":  {Type: "bpe", Size: 1 << 30, Texts: []string{"a"}},
		"texts": {Type: "bpe", Size: 300}, "bos": {Type: "bpe", Size: 300, Texts: []string{"a"}, Bos: "<s>"},
		"small":    {Type: "bpe", Size: 3, Texts: []string{"a"}},
		"outside":  {Type: "bpe", Size: 300, Files: []string{"../x"}},
		"absolute": {Type: "bpe", Size: 300, Files: []string{"/etc/hostname"}},
		"link":     {Type: "bpe", Size: 300, Files: []string{"out"}},
		"folder":   {Type: "bpe", Size: 300, Files: []string{"."}},
		"utf-8":    {Type: "bpe", Size: 300, Files: []string{"bad"}},
	} {
		if _, _, err := train(t, c, r); err == nil || status.Code(err) == codes.OK {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := train(t, without, &request{Type: "bpe", Size: 300, Files: []string{"x"}}); err == nil ||
		!strings.Contains(err.Error(), "no folder of texts") {
		t.Errorf("%v", err)
	}
}
