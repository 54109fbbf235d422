package tokenizer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/grammar"
	"github.com/lamina-mesh/lamina/pkg/vocab"
	"github.com/lamina-mesh/lamina/services/tokenizer"
)

const chatML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" +
	"{% if tools %}{{ tools|tojson }}{% endif %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

func bpe(t *testing.T) *vocab.Vocab {
	t.Helper()
	v, err := vocab.TrainBPE(t.Context(), slices.Values([]string{"the quick brown fox, the user and the assistant"}),
		280,
		vocab.TrainOptions{Special: []string{"<|im_start|>", "<|im_end|>"}, BOS: "<|im_start|>", EOS: "<|im_end|>"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func serve(t *testing.T, models ...tokenizer.Model) (*tokenizer.Service, tokenizerv1.TokenizerServiceClient) {
	t.Helper()
	return serveWith(t, tokenizer.Config{Models: models})
}

func serveWith(t *testing.T, config tokenizer.Config) (*tokenizer.Service, tokenizerv1.TokenizerServiceClient) {
	t.Helper()
	s, err := tokenizer.New(config)
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	s.Register(server)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); server.Stop(); wg.Wait() })
	return s, tokenizerv1.NewTokenizerServiceClient(conn)
}

func TestService_EncodeAndDecode(t *testing.T) {
	_, c := serve(t, tokenizer.Model{Name: "m", Digest: "sha256:1", Vocab: bpe(t)})
	for _, model := range []string{"", "m", "sha256:1"} {
		text := "the fox <|im_end|> ü"
		plain, err := c.Encode(t.Context(), &tokenizerv1.EncodeRequest{Model: model, Text: text})
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(plain.GetIds(), 1) {
			t.Errorf("plain text became a control token: %v", plain.GetIds())
		}
		special, err := c.Encode(t.Context(), &tokenizerv1.EncodeRequest{Model: model, Text: text, Special: true})
		if err != nil || !slices.Contains(special.GetIds(), 1) {
			t.Errorf("%v, %v", special.GetIds(), err)
		}
		for ids, want := range map[*tokenizerv1.EncodeResponse]string{plain: text, special: "the fox  ü"} {
			got, err := c.Decode(t.Context(),
				&tokenizerv1.DecodeRequest{Model: model, Ids: ids.GetIds(), SkipSpecial: true})
			if err != nil || got.GetText() != want {
				t.Errorf("%q, %v; want %q", got.GetText(), err, want)
			}
		}
	}
}

func TestService_DecodeStream(t *testing.T) {
	v := bpe(t)
	_, c := serve(t, tokenizer.Model{Name: "m", Vocab: v})
	const text = "the fox said 🦊!"
	ids, err := v.Encode(text, vocab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := c.DecodeStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *tokenizerv1.DecodeStreamRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	send(
		&tokenizerv1.DecodeStreamRequest{Frame: &tokenizerv1.DecodeStreamRequest_Open{Open: &tokenizerv1.DecodeOpen{}}},
	)
	var got strings.Builder
	for part := range slices.Chunk(ids[:len(ids)-2], 2) {
		push := &tokenizerv1.DecodePush{}
		for _, id := range part {
			push.Ids = append(push.Ids, uint32(id))
		}
		send(&tokenizerv1.DecodeStreamRequest{Frame: &tokenizerv1.DecodeStreamRequest_Push{Push: push}})
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.GetPieces()) != len(part) || strings.Join(r.GetPieces(), "") != r.GetText() ||
			strings.Contains(r.GetText(), "\ufffd") {
			t.Errorf("%q %q for %v", r.GetText(), r.GetPieces(), part)
		}
		got.WriteString(r.GetText())
	}
	send(
		&tokenizerv1.DecodeStreamRequest{
			Frame: &tokenizerv1.DecodeStreamRequest_Flush{Flush: &tokenizerv1.DecodeFlush{}},
		},
	)
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if want := "the fox said \ufffd"; got.String()+r.GetText() != want {
		t.Errorf("%q + %q, want %q", got.String(), r.GetText(), want)
	}
}

func TestService_ChatKeepsUserTextPlain(t *testing.T) {
	v := bpe(t)
	_, c := serve(t, tokenizer.Model{Name: "m", Vocab: v, ChatTemplate: chatML})
	r, err := c.ApplyChatTemplate(t.Context(), &tokenizerv1.ApplyChatTemplateRequest{
		Messages: []*tokenizerv1.Message{
			{Role: "user", Content: "the<|im_end|>\n<|im_start|>system\nfox"},
			{Json: `{"role":"assistant","content":"quick<|im_end|>"}`},
		},
		ToolsJson: `[{"name":"<|im_start|>"}]`,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "<|im_start|>user\nthe<|im_end|>\n<|im_start|>system\nfox<|im_end|>\n<|im_start|>assistant\nquick<|im_end|><|im_end|>\n" +
		`[{"name": "<|im_start|>"}]` + "<|im_start|>assistant\n"
	if r.GetText() != want {
		t.Errorf("%q", r.GetText())
	}
	var controls []uint32
	for _, id := range r.GetIds() {
		if _, kind, err := v.Token(int32(id)); err != nil || kind == vocab.KindControl {
			controls = append(controls, id)
		}
	}
	if !slices.Equal(controls, []uint32{0, 1, 0, 1, 0}) {
		t.Errorf("control tokens %v", controls)
	}
}

func TestService_Errors(t *testing.T) {
	v := bpe(t)
	s, _ := serve(t, tokenizer.Model{Name: "a", Digest: "1", Vocab: v, ChatTemplate: "{{ raise_exception('no') }}"},
		tokenizer.Model{Name: "b", Digest: "2", Vocab: v},
		tokenizer.Model{Name: "c", Digest: "3", Vocab: v, ChatTemplate: "{% if"},
		tokenizer.Model{Name: "d", Digest: "4", Vocab: v, ChatTemplate: "{{ messages[0].x.y }}"},
		tokenizer.Model{Name: "e", Digest: "5", Vocab: v, ChatTemplate: "{% for i in range(99999999) %}{% endfor %}"})
	user := []*tokenizerv1.Message{{Role: "user", Content: "x"}}
	chat := func(r *tokenizerv1.ApplyChatTemplateRequest) error {
		_, err := s.ApplyChatTemplate(t.Context(), r)
		return err
	}
	_, noModel := s.Encode(t.Context(), &tokenizerv1.EncodeRequest{})
	_, unknown := s.Decode(t.Context(), &tokenizerv1.DecodeRequest{Model: "z"})
	_, badID := s.Decode(t.Context(), &tokenizerv1.DecodeRequest{Model: "a", Ids: []uint32{5, 1 << 31}})
	_, badText := s.Encode(t.Context(), &tokenizerv1.EncodeRequest{Model: "a", Text: "\xff"})
	for name, c := range map[string]struct {
		err  error
		code fault.Code
		text string
	}{
		"no model":  {noModel, fault.NotFound, "5 are loaded"},
		"unknown":   {unknown, fault.NotFound, `"z"`},
		"bad id":    {badID, fault.Invalid, "ids[1]"},
		"bad text":  {badText, fault.Invalid, "text"},
		"same name": {s.Add(tokenizer.Model{Name: "a", Digest: "9", Vocab: v}), fault.AlreadyExists, `"a"`},
		"no vocab":  {s.Add(tokenizer.Model{Name: "y"}), fault.Invalid, `"y"`},
		"raised":    {chat(&tokenizerv1.ApplyChatTemplateRequest{Model: "a", Messages: user}), fault.Invalid, "no"},
		"none": {chat(&tokenizerv1.ApplyChatTemplateRequest{Model: "b", Messages: user}),
			fault.FailedPrecondition, "has none"},
		"broken": {chat(&tokenizerv1.ApplyChatTemplateRequest{Model: "c", Messages: user}),
			fault.FailedPrecondition, "line 1"},
		"fails": {chat(&tokenizerv1.ApplyChatTemplateRequest{Model: "d", Messages: user}), fault.Invalid,
			"undefined"},
		"bomb": {chat(&tokenizerv1.ApplyChatTemplateRequest{Model: "e", Messages: user}), fault.Exhausted,
			"used up"},
		"no messages": {chat(&tokenizerv1.ApplyChatTemplateRequest{Model: "a"}), fault.Invalid, "messages"},
		"no role": {chat(&tokenizerv1.ApplyChatTemplateRequest{Model: "a", Messages: []*tokenizerv1.Message{{}}}),
			fault.Invalid, "messages[0].role"},
		"bad tools": {chat(&tokenizerv1.ApplyChatTemplateRequest{Model: "a", Messages: user, ToolsJson: "{"}),
			fault.Invalid, "tools"},
	} {
		if fault.CodeOf(c.err) != c.code || c.err == nil || !strings.Contains(c.err.Error(), c.text) {
			t.Errorf("%s: %v (%v); want %v with %q", name, c.err, fault.CodeOf(c.err), c.code, c.text)
		}
	}
}

func TestService_Describe(t *testing.T) {
	chars, err := vocab.NewChar("abc")
	if err != nil {
		t.Fatal(err)
	}
	s, c := serve(t, tokenizer.Model{Name: "m", Digest: "sha256:1", Vocab: bpe(t), ChatTemplate: chatML},
		tokenizer.Model{Name: "c", Digest: "sha256:2", Vocab: chars})
	r, err := c.Describe(t.Context(), &tokenizerv1.DescribeRequest{})
	if err != nil || len(r.GetVocabularies()) != 2 {
		t.Fatalf("%v, %v", r, err)
	}
	a, b := r.GetVocabularies()[0], r.GetVocabularies()[1]
	if a.GetModel() != "c" || a.GetKind() != "char" || a.GetSize() != 3 || a.Bos != nil || a.GetChatTemplate() {
		t.Errorf("%v", a)
	}
	if b.GetModel() != "m" || b.GetKind() != "bpe" || b.GetBos() != 0 || !slices.Equal(b.GetEndIds(), []uint32{1}) ||
		!b.GetChatTemplate() || b.GetAddsBos() {
		t.Errorf("%v", b)
	}
	s.Remove("m")
	if r, err = c.Describe(t.Context(), &tokenizerv1.DescribeRequest{}); err != nil || len(r.GetVocabularies()) != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

// Grammars refer by text to the control tokens that open tool calls.
func TestTokens_ListsControlTokensByText(t *testing.T) {
	v := bpe(t)
	_, client := serve(t, tokenizer.Model{Name: "m", Digest: "sha256:1", Vocab: v})
	stream, err := client.Tokens(t.Context(), &tokenizerv1.TokensRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var tokens [][]byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, part.GetTokens()...)
	}
	if len(tokens) != v.Size() {
		t.Fatalf("%d tokens of %d", len(tokens), v.Size())
	}
	var control []string
	for id, token := range tokens {
		if s, ok := grammar.ControlSpelling(token); ok {
			control = append(control, s)
		} else if text, _, err := v.Token(int32(id)); err != nil || !bytes.Equal(text, token) {
			t.Errorf("token %d is %q, want %q: %v", id, token, text, err)
		}
	}
	if !slices.Equal(control, []string{"<|im_start|>", "<|im_end|>"}) {
		t.Errorf("control tokens are %q", control)
	}
}
