package tokenizer_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/internal/fixtures"
	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/weights/filetest"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

// shared returns the path of a fixture, or skips the test.
func shared(t testing.TB, parts ...string) string {
	t.Helper()
	return fixtures.Path(t, parts...)
}

func TestLoad_ChatModelAnswersWithItsOwnTemplate(t *testing.T) {
	dir := shared(t, "models", "smollm2-135m-instruct")
	m, err := tokenizer.Load(filepath.Join(dir, "SmolLM2-135M-Instruct.Q4_1.gguf"), "", "sha256:given")
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "SmolLM2-135M-Instruct.Q4_1" || m.Digest != "sha256:given" {
		t.Errorf("%q %q", m.Name, m.Digest)
	}
	data, err := os.ReadFile(filepath.Join(dir, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Cases []struct {
			Prompt string   `json:"prompt"`
			IDs    []uint32 `json:"prompt_ids"`
		} `json:"cases"`
	}
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	_, client := serve(t, m)
	chats := 0
	for _, c := range want.Cases {
		_, rest, found := strings.Cut(c.Prompt, "<|im_start|>user\n")
		user, _, closed := strings.Cut(rest, "<|im_end|>")
		if !found || !closed {
			continue
		}
		chats++
		r, err := client.ApplyChatTemplate(t.Context(), &tokenizerv1.ApplyChatTemplateRequest{
			Messages: []*tokenizerv1.Message{{Role: "user", Content: user}}})
		if err != nil || r.GetText() != c.Prompt || !slices.Equal(r.GetIds(), c.IDs) {
			t.Errorf("%q %v, %v\nwant %q %v", r.GetText(), r.GetIds(), err, c.Prompt, c.IDs)
		}
	}
	if chats == 0 {
		t.Error("no chat among the expected cases")
	}
}

func TestLoad_HuggingFaceDirectory(t *testing.T) {
	m, err := tokenizer.Load(shared(t, "models", "tiny", "llama"), "tiny", "")
	if err != nil {
		t.Fatal(err)
	}
	if m.Vocab.Size() != 320 || !strings.HasPrefix(m.Digest, "sha256:") {
		t.Errorf("size %d, digest %q", m.Vocab.Size(), m.Digest)
	}
}

func TestLoad_Errors(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.gguf")
	if err := os.WriteFile(bad, []byte("GGUX"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "tokenizer.json"),
		[]byte(`{"model":{"type":"Unigram","vocab":{"a":0}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]fault.Code{
		filepath.Join(dir, "none"): fault.NotFound, t.TempDir(): fault.NotFound, other: fault.Unimplemented,
		bad: fault.Invalid, dir: fault.Invalid, // the folder's one model is the bad file
	} {
		if _, err := tokenizer.Load(path, "", ""); fault.CodeOf(err) != code {
			t.Errorf("%s: %v, want %v", path, err, code)
		}
	}
}

func TestLoadVocab_FilesOfEveryKind(t *testing.T) {
	var ranks strings.Builder
	for i := range 256 {
		ranks.WriteString(base64.StdEncoding.EncodeToString([]byte{byte(i)}) + " " + strconv.Itoa(i) + "\n")
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// A SentencePiece model of two pieces: <unk>, then "a" of score -1.
	piece := func(text string, more string) string {
		body := "\x0a" + string(rune(len(text))) + text + "\x15\x00\x00\x80\xbf" + more
		return "\x0a" + string(rune(len(body))) + body
	}
	hf := `{"model":{"type":"WordPiece","unk_token":"[UNK]","vocab":{"[UNK]":0,"a":1}}}`
	for path, want := range map[string]struct {
		family string
		size   int
	}{
		write("x.tiktoken", ranks.String()):                         {"bpe", 256},
		write("x.model", piece("<unk>", "\x18\x02")+piece("a", "")): {"unigram", 2},
		write("some.json", hf):                                      {"wordpiece", 2},
		filepath.Dir(write("tokenizer.json", hf)):                   {"wordpiece", 2},
	} {
		v, err := tokenizer.LoadVocab(path)
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(path), err)
			continue
		}
		if v.Family() != want.family || v.Size() < want.size {
			t.Errorf("%s: a %s of %d, want %v", filepath.Base(path), v.Family(), v.Size(), want)
		}
	}
	if _, err := tokenizer.LoadVocab(write("text.txt", "Once upon a time")); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("a text file: %v", err)
	}
}

// TestLibrary_SplitModel opens a split GGUF model by its name without the parts' numbers
// and by its digest, and sees that a part has changed.
func TestLibrary_SplitModel(t *testing.T) {
	whole, err := os.ReadFile(shared(t, "models", "tiny", "llama", "model-bf16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	parts, err := filetest.Split(whole, 2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(i int, data []byte) {
		name := filepath.Join(dir, fmt.Sprintf("split-%05d-of-00002.gguf", i+1))
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, data := range parts {
		write(i, data)
	}
	l := tokenizer.NewLibrary(dir)
	byName, err := l.Open(t.Context(), "split")
	if err != nil {
		t.Fatal(err)
	}
	byDigest, err := l.Open(t.Context(), byName.Digest)
	if err != nil || byDigest.Name != "split" || byDigest.Vocab.Size() != 320 {
		t.Errorf("by digest: %q, %v", byDigest.Name, err)
	}
	write(1, append(parts[1], 0))
	changed, err := l.Open(t.Context(), "split")
	if err != nil || changed.Digest == byName.Digest {
		t.Errorf("after a change of the second part: %s, %v; before %s", changed.Digest, err, byName.Digest)
	}
}
