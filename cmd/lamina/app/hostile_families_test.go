package app_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/proto"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	samplerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/sampler/v1"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
)

// hostileRequest is one request of a family: an HTTP body for a path, or a gRPC message.
type hostileRequest struct {
	family   string
	path     string // of the HTTP API; empty for gRPC
	body     string
	generate *routerv1.GenerateRequest // else chat
	chat     *routerv1.ChatRequest
}

// family makes hostile requests of one kind. The requests only depend on the random source.
type family struct {
	name  string
	write func(r *rand.Rand) hostileRequest
}

func oneOf[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// completion returns a body of /v1/completions with one more field.
func completion(r *rand.Rand, field string, value string) hostileRequest {
	stream := oneOf(r, "true", "false")
	return hostileRequest{
		path: "/v1/completions",
		body: `{"prompt":"ab","max_tokens":3,"stream":` + stream + `,"` + field + `":` + value + `}`,
	}
}

// chatBody returns a body of /v1/chat/completions with more fields.
func chatBody(r *rand.Rand, fields string) hostileRequest {
	stream := oneOf(r, "true", "false")
	return hostileRequest{
		path: "/v1/chat/completions",
		body: `{"messages":[{"role":"user","content":"ab"}],"max_tokens":3,"stream":` + stream + `,` + fields + `}`,
	}
}

func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// constrained returns a request with a grammar, for the HTTP API or for gRPC.
func constrained(r *rand.Rand, kind samplerv1.GrammarKind, field, source string) hostileRequest {
	if r.IntN(2) == 0 {
		value := quoted(source)
		if kind == samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA && json.Valid([]byte(source)) {
			value = source
		}
		if r.IntN(2) == 0 {
			return chatBody(r, `"`+field+`":`+value)
		}
		return completion(r, field, value)
	}
	return hostileRequest{generate: &routerv1.GenerateRequest{
		Prompt: &routerv1.GenerateRequest_Text{Text: "ab"}, MaxTokens: 3,
		Sampling: &routerv1.Sampling{Grammar: &samplerv1.Grammar{Kind: kind, Source: source}},
	}}
}

// expensive returns texts with nested and repeated parts.
func expensive(r *rand.Rand, open, inside, end string) string {
	n := 1 + r.IntN(120)
	return strings.Repeat(open, n) + inside + strings.Repeat(end, n)
}

func hostileRegex(r *rand.Rand) string {
	n := 1 + r.IntN(60)
	atom := oneOf(
		r, `(a+)+$`, `(a|a)*`, `(.*a)`, `[^\p{L}\d]`, `\b\w+\b`, `(?=a)`, `(?!b)`, `(?:x?){3}`, `$`, `^`, `.`, `\`, `[`,
		`(`,
		`)`, `\x`, `\p{Nope}`, `(?<n>a)`, `\1`, "\x00", "é",
	)
	return oneOf(r,
		`(a+)+$(a+)+$`, strings.Repeat(atom, n), expensive(r, "(", "a", ")*"), fmt.Sprintf(`(%s){%d}`, atom, n*n),
		fmt.Sprintf(`%s{%d,%d}`, atom, n, n/2),
		fmt.Sprintf(`(.*a){%d}`, n), fmt.Sprintf(`[ab]*a[ab]{%d}`, n), "", `$^`, `a$b`, `[]`, `[^\s\S]`,
		atom+atom+`|`+atom)
}

func hostileGBNF(r *rand.Rand) string {
	n := 1 + r.IntN(60)
	return oneOf(r,
		"", "root ::=", "root ::= root", `root ::= "a" root`, `root ::= root "a"`, "root ::= missing", `toor ::= "a"`,
		`root ::= [z-a]`, `root ::= "\q"`,
		"root ::= "+expensive(r, "(", `"a"`, ")*"), fmt.Sprintf(`root ::= "a"{%d,%d}`, n*1000, n), fmt.Sprintf(
			`root ::= ((([a-z]{0,%d} "x"?){0,%d}){1,%d})*`, n, n, n,
		),
		fmt.Sprintf(
			`root ::= "a" root root root | "a" root | "b" | "a"%s`, strings.Repeat(` | "a" root`, n),
		), `root ::= "`+strings.Repeat("é", 40*n)+`"`,
		"root ::= \"\x00\xff\"", strings.Repeat("root ::= \"a\"\n", n), `root ::= <|im_end|>`,
		`root ::= "\u00e9\U0010FFFF"`)
}

func hostileSchema(r *rand.Rand) string {
	n := 1 + r.IntN(60)
	many := func(one func(i int) string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = one(i)
		}
		return strings.Join(parts, ",")
	}
	return oneOf(r,
		`false`, `{"enum":[]}`, `{"not":{}}`, `{"type":"strin"}`, `{"type":"string","minLength":5,"maxLength":2}`,
		`{"minimum":"a"}`, `{"$ref":"#/nowhere"}`, `{"$ref":"#"}`, `[`, `7`,
		`{"type":"integer","minimum":1e400}`, `{"type":"number","multipleOf":0}`,
		`{"type":"string","pattern":`+quoted(hostileRegex(r))+`}`,
		expensive(r, `{"items":`, `{}`, `}`), expensive(r, `{"not":`, `{"required":["a"]}`, `}`),
		`{"allOf":[`+many(func(i int) string {
			return fmt.Sprintf(`{"anyOf":[{"required":["a%d"]},{"required":["b%d"]},{"minProperties":%d}]}`, i, i, i%3)
		})+`]}`,
		`{"$ref":"#/$defs/d0","$defs":{`+many(func(i int) string {
			return fmt.Sprintf(
				`"d%d":{"properties":{"x":{"$ref":"#/$defs/d%d"},"y":{"$ref":"#/$defs/d%d"}}}`, i, (i+1)%n, (i*5+1)%n,
			)
		})+`}}`,
		`{"enum":[`+many(func(i int) string { return fmt.Sprintf(`"value %d"`, i*7919) })+`]}`,
		fmt.Sprintf(`{"type":"array","uniqueItems":true,"minItems":%d,"items":{"enum":["a","b"]}}`, n),
		fmt.Sprintf(
			`{"type":"string","minLength":%d}`, 1<<(n%40),
		), `{"unevaluatedProperties":false,"anyOf":[{"properties":{"a":{}}},{"patternProperties":{".*":{}}}]}`)
}

func hostileTags(r *rand.Rand) string {
	return oneOf(r,
		`{}`, `[]`, `{"tags":[]}`, `{"triggers":[""],"tags":[{"begin":"","schema":{}}]}`,
		`{"tags":[{"begin":"<","schema":`+hostileSchema(r)+`,"end":">"}]}`,
		`{"triggers":["<a"],"tags":[{"begin":"<b","schema":{},"end":""}]}`, `{"type":"structure"}`,
		`{"type":"regex","pattern":`+quoted(hostileRegex(r))+`}`,
		`{"type":"grammar","grammar":`+quoted(hostileGBNF(r))+`}`, expensive(
			r, `{"type":"sequence","elements":[`, `{"type":"any_text"}`, `]}`,
		))
}

// number returns an invalid number or one out of range.
func number(r *rand.Rand) string {
	return oneOf(r, "-1", "1e39", "-1e39", "1e999", "0.5", "2147483648", "4294967295", "4294967296",
		"-9223372036854775808", "18446744073709551616",
		"1e-320", "null", `"1"`, `"NaN"`, "[]", "{}", "true", "3", "21", "101", "-100.5",
		fmt.Sprint(r.NormFloat64()*1000), fmt.Sprint(r.IntN(1<<30)))
}

func numberFields() []string {
	return []string{"temperature", "top_p", "top_k", "min_p", "seed", "n", "best_of", "presence_penalty",
		"frequency_penalty", "repetition_penalty", "repeat_penalty",
		"max_tokens", "logprobs", "typical_p", "top_n_sigma", "epsilon_cutoff", "eta_cutoff", "xtc_probability",
		"xtc_threshold", "dynatemp_range",
		"dynatemp_exponent", "no_repeat_ngram_size", "dry_multiplier", "dry_base", "dry_allowed_length",
		"dry_penalty_last_n", "mirostat", "mirostat_tau",
		"mirostat_eta", "min_tokens", "repeat_last_n", "ignore_end", "echo"}
}

func float(r *rand.Rand) float32 {
	return oneOf[float32](
		r, float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), -1, 1e38, -1e38, 101, 1.5, 3,
		float32(r.NormFloat64()), math.SmallestNonzeroFloat32, 0,
	)
}

func whole(r *rand.Rand) uint32 {
	return oneOf[uint32](r, 0, 1, math.MaxUint32, 1<<31, 1<<24, 1<<24+1, 300, uint32(r.IntN(1<<16)))
}

// rules returns sampling parameters, of which any may be invalid.
func rules(r *rand.Rand) *routerv1.Sampling {
	s := &routerv1.Sampling{Advanced: &samplerv1.Advanced{}}
	a := s.GetAdvanced()
	phrase := func() []*samplerv1.Ids {
		return []*samplerv1.Ids{{Ids: []uint32{whole(r), 3}}, {Ids: make([]uint32, r.IntN(70))}}
	}
	f := float(r)
	for range 1 + r.IntN(2) {
		switch r.IntN(24) {
		case 0:
			s.Temperature = &f
		case 1:
			s.TopP = &f
		case 2:
			s.MinP = &f
		case 3:
			s.RepetitionPenalty = &f
		case 4:
			s.FrequencyPenalty = f
		case 5:
			s.PresencePenalty = f
		case 6:
			s.LogitBias = map[uint32]float32{whole(r): f, whole(r): float(r)}
		case 7:
			s.TopK = proto.Uint32(whole(r))
		case 8:
			a.TypicalP, a.TopNSigma = f, float(r)
		case 9:
			a.EpsilonCutoff, a.EtaCutoff = f, float(r)
		case 10:
			a.XtcProbability, a.XtcThreshold = f, float(r)
		case 11:
			a.DynamicRange, a.DynamicExponent = f, float(r)
		case 12:
			a.NoRepeatNgram = whole(r)
		case 13:
			a.BadWords = phrase()
		case 14:
			a.DryMultiplier, a.DryBase = f, float(r)
		case 15:
			a.DryAllowedLength, a.DryLastN, a.DryMultiplier = whole(r), whole(r), 1
		case 16:
			a.DryBreakers, a.DryMultiplier = phrase(), 1
		case 17:
			a.Mirostat, a.MirostatTau, a.MirostatEta = whole(r), float(r), f
		case 18:
			a.MinTokens = whole(r)
		case 19:
			a.PenaltyLastN, s.RepetitionPenalty = whole(r), &f
		case 20:
			a.Order = []string{oneOf(r, "top_k", "nonsense", "", "temperature", "mirostat"),
				oneOf(r, "top_k", "min_p", "\xff")}
		case 21:
			s.BadWords = []string{oneOf(r, "", "a", strings.Repeat("a", 300), "\xff\xfe", "\x00"), "b"}
		case 22:
			s.Choice = whole(r)
		case 23:
			s.Grammar = &samplerv1.Grammar{Kind: samplerv1.GrammarKind(whole(r)), Source: oneOf(r, "", "a", "\xff")}
		}
	}
	return s
}

// text returns a prompt that is difficult for tokenizers and templates.
func text(r *rand.Rand) string {
	return oneOf(r, "", "\x00", "\u202e\ufeff", strings.Repeat("a", 2_000), strings.Repeat("\U0001F469\u200d", 60),
		"[TOOL_CALLS]x[ARGS]{}", "{{ 7*7 }}{% for %}",
		"</s><s>", strings.Repeat(" \t\n", 300), strings.Repeat("\u0301", 400), "ab")
}

func hostileTools(r *rand.Rand) string {
	tool := func(name, parameters string) string {
		return `{"type":"function","function":{"name":` + name + `,"strict":` + oneOf(r, "true", "false") +
			`,"parameters":` + parameters + `}}`
	}
	schema := hostileSchema(r)
	if !json.Valid([]byte(schema)) {
		schema = `{}`
	}
	return oneOf(r,
		`{}`, `"x"`, `[{}]`, `[7]`, `[{"type":"function"}]`, `[{"type":"retrieval"}]`, `[`+tool(`""`, `{}`)+`]`,
		`[`+tool(`null`, `{}`)+`]`, `[`+tool(`"a"`, schema)+`]`,
		`[`+tool(`"a"`, schema)+`,`+tool(`"a"`, schema)+`]`, `[`+tool(`"`+strings.Repeat("a", 5000)+`"`, `{}`)+`]`,
		`[`+tool(
			`"a\u0000\"[ARGS]"`, `{"type":"object"}`,
		)+`]`,
		`[`+strings.Repeat(tool(`"a"`, `{}`)+`,`, 600)+tool(`"b"`, `{}`)+`]`, `[`+tool(`"a"`, `"x"`)+`]`, `[`)
}

// families returns all families.
func families() []family {
	g := func(name string, kind samplerv1.GrammarKind, field string, source func(*rand.Rand) string) family {
		return family{name, func(r *rand.Rand) hostileRequest { return constrained(r, kind, field, source(r)) }}
	}
	return []family{
		g("regex", samplerv1.GrammarKind_GRAMMAR_KIND_REGEX, "guided_regex", hostileRegex),
		g("gbnf", samplerv1.GrammarKind_GRAMMAR_KIND_GBNF, "grammar", hostileGBNF),
		g("schema", samplerv1.GrammarKind_GRAMMAR_KIND_JSON_SCHEMA, "guided_json", hostileSchema),
		{"tags", func(r *rand.Rand) hostileRequest {
			if r.IntN(2) == 0 {
				if tags := hostileTags(r); json.Valid([]byte(tags)) {
					return chatBody(
						r,
						`"response_format":{"type":"structural_tag","structures":`+tags+`,"triggers":`+oneOf(
							r, `["<"]`, `[]`, `[7]`, `["",""]`,
						)+`}`,
					)
				}
			}
			return hostileRequest{generate: &routerv1.GenerateRequest{
				Prompt: &routerv1.GenerateRequest_Text{Text: "ab"}, MaxTokens: 3,
				Sampling: &routerv1.Sampling{
					Grammar: &samplerv1.Grammar{Kind: samplerv1.GrammarKind_GRAMMAR_KIND_TAGS, Source: hostileTags(r)},
				},
			}}
		}},
		{"rules by HTTP", func(r *rand.Rand) hostileRequest {
			field := numberFields()[r.IntN(len(numberFields()))]
			if r.IntN(2) == 0 {
				return completion(r, field, number(r))
			}
			return chatBody(r, `"`+field+`":`+number(r))
		}},
		{"rules by gRPC", func(r *rand.Rand) hostileRequest {
			return hostileRequest{generate: &routerv1.GenerateRequest{
				Prompt: &routerv1.GenerateRequest_Text{Text: "ab"}, MaxTokens: oneOf[uint32](r, 2, 3, math.MaxUint32),
				TopLogprobs: oneOf[uint32](r, 0, 0, 20, whole(r)), Sampling: rules(r),
				Stop: oneOf[[]string](r, nil, []string{""}, []string{"a"}, make([]string, 17),
					[]string{strings.Repeat("a", 2000)}),
			}}
		}},
		{"ids", func(r *rand.Rand) hostileRequest {
			if r.IntN(2) == 0 {
				return completion(r, oneOf(
					r, "prompt", "bad_words_ids", "bad_words", "dry_sequence_breakers", "stop", "logit_bias",
					"samplers",
				),
					oneOf(r, "[[1,2],[4294967295]]", "[1,2,99999]", "[-1]", "[1.5]", "[[]]", "[]", "{}", `{"99999":1}`,
						`{"-1":1}`, `{"x":1}`, `{"1":101}`, `{"4294967296":0}`, `[""]`, `["a",7]`,
						"["+strings.Repeat("1,", 1500)+"1]", `[["a"]]`, "null", `["top_k","top_k"]`, `["nope"]`, "7"))
			}
			return hostileRequest{generate: &routerv1.GenerateRequest{
				MaxTokens: 2, Prompt: &routerv1.GenerateRequest_TokenIds{
					TokenIds: &routerv1.TokenIds{
						Ids: oneOf[[]uint32](r, nil, []uint32{whole(r)}, []uint32{5, whole(r)}, make([]uint32, 20_000)),
					},
				},
			}}
		}},
		{"tools", func(r *rand.Rand) hostileRequest {
			tools := hostileTools(r)
			if r.IntN(2) == 0 && json.Valid([]byte(tools)) {
				return chatBody(
					r,
					`"tools":`+tools+`,"tool_choice":`+oneOf(
						r, `"required"`, `"auto"`, `"none"`, `"never"`, `{"type":"function","function":{"name":"z"}}`,
						`{}`, `7`,
					),
				)
			}
			return hostileRequest{chat: &routerv1.ChatRequest{
				Messages: []*tokenizerv1.Message{{Role: "user", Content: "ab"}}, MaxTokens: 3, ToolsJson: tools,
				ToolChoice: &routerv1.ToolChoice{Mode: routerv1.ToolChoiceMode(r.IntN(6)),
					Function: oneOf(r, "", "a", "z")},
			}}
		}},
		{"templates", func(r *rand.Rand) hostileRequest {
			if r.IntN(2) == 0 {
				return chatBody(r, oneOf(r, `"chat_template_kwargs":`+oneOf(
					r, `7`, `{"messages":[]}`, `{"a":`+expensive(r, "[", "1", "]")+`}`, `[]`,
				),
					`"documents":`+oneOf(r, `7`, `[7]`, `[{}]`),
					`"messages":`+oneOf(r, `[]`, `7`, `[{}]`, `[{"role":7}]`, `[{"role":"tool"}]`,
						`[{"role":"user","content":[{"type":"image_url"}]}]`,
						`[{"role":"assistant","tool_calls":[{}]}]`,
						`[{"role":`+quoted(text(r))+`,"content":`+quoted(text(r))+`}]`),
					`"add_generation_prompt":true,"continue_final_message":true`, `"reasoning_effort":7`,
					`"model":"nobody"`))
			}
			return hostileRequest{chat: &routerv1.ChatRequest{
				Messages: []*tokenizerv1.Message{
					{
						Role: oneOf(r, "user", "", "tool", "wizard"), Content: text(r),
						Json: oneOf(r, "", "", "{", "[]", `{"role":7}`, `{"role":"assistant","tool_calls":7}`),
					},
				},
				MaxTokens: 2, VariablesJson: oneOf(
					r, "", "{", "7", `{"a":`+expensive(r, "[", "1", "]")+`}`,
				), DocumentsJson: oneOf(r, "", "7", "[{}]"),
				Template: oneOf(r, "", "nope"), NoGenerationPrompt: r.IntN(2) == 0,
				ContinueFinalMessage: r.IntN(3) == 0,
			}}
		}},
		{"texts", func(r *rand.Rand) hostileRequest {
			if r.IntN(2) == 0 {
				return completion(r, "prompt", quoted(text(r)))
			}
			return hostileRequest{
				generate: &routerv1.GenerateRequest{
					MaxTokens: 2, Model: oneOf(r, "", "", "nobody"),
					Prompt:  &routerv1.GenerateRequest_Text{Text: strings.ToValidUTF8(text(r), "?")},
					Special: r.IntN(2) == 0,
				},
			}
		}},
		{"damage", func(r *rand.Rand) hostileRequest {
			body := []byte(oneOf(r, completion(r, "top_p", "0.5"), chatBody(r, `"temperature":0.5,"tools":[]`)).body)
			for range 1 + r.IntN(4) {
				at := r.IntN(len(body))
				switch r.IntN(3) {
				case 0:
					body[at] = byte(r.Uint32())
				case 1:
					body = body[:max(1, at)]
				case 2:
					body = append(body[:at:at], body[min(len(body), at+1+r.IntN(3)):]...)
				}
				if len(body) == 0 {
					body = []byte(expensive(r, "[", "", ""))
				}
			}
			return hostileRequest{
				path: oneOf(r, "/v1/completions", "/v1/chat/completions"),
				body: strings.ReplaceAll(string(body), `"max_tokens"`, `"max_tokens"`),
			}
		}},
	}
}
