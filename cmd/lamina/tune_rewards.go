package main

import (
	"encoding/json"
	"io"
	"os"
	"strings"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/reward"
	"github.com/lamina-mesh/lamina/pkg/tuning"
)

// rewardRules reads rewards as --reward names them.
func rewardRules(texts []string) ([]reward.Rule, error) {
	if len(texts) == 0 {
		return nil, fault.Field("reward", "want exact, number, regex:RE, schema:FILE or command:PROGRAM for grpo")
	}
	var out []reward.Rule
	for _, text := range texts {
		kind, value, _ := strings.Cut(text, ":")
		var r reward.Rule
		switch kind {
		case "exact":
			r.Exact = true
		case "number":
			r.Number = true
		case "regex":
			r.Regex = value
		case "schema":
			schema, err := os.ReadFile(value)
			if err != nil {
				return nil, fault.Wrap(fault.NotFound, err, "reward")
			}
			r.Schema = json.RawMessage(schema)
		case "command":
			r.Command = strings.Fields(value)
		default:
			return nil, fault.Field("reward", "%q is none of exact, number, regex:RE, schema:FILE and command:PROGRAM", text)
		}
		if (kind == "exact" || kind == "number") != (value == "") {
			return nil, fault.Field("reward", "%q: want something behind the colon, and nothing behind exact and number",
				text)
		}
		out = append(out, r)
	}
	return out, nil
}

// prompts encodes prompts. All answers to a prompt take at most most rows, and each of them, with its prompt, is within
// the context length. The last token of an answer has no row.
func (c *tuneCmd) prompts(e *verb.Env, rows []row, r *tuning.Renderer, most, context int) (*tuneData, error) {
	if c.Group < 2 || c.MaxTokens < 1 {
		return nil, fault.Field("group", "%d answers of %d tokens: want 2 or more of 1 or more", c.Group, c.MaxTokens)
	}
	each := min(most/c.Group, context-1)
	room := each - c.MaxTokens + 1 // for the ids of a prompt
	if room < 1 {
		return nil, fault.Field("max-tokens", "%d tokens leave no room for a prompt: each of %d answers has %d rows of a "+
			"sequence, with its prompt", c.MaxTokens, c.Group, each)
	}
	d := &tuneData{report: tuning.NewReport(), field: "prompts", file: promptsFile}
	var kept []*tuning.Prompt
	for _, row := range rows {
		conversation, answer, err := tuning.ParsePrompt(row.line, row.text)
		var p *tuning.Prompt
		if err == nil {
			p, err = r.Prompt(e.Ctx, conversation, answer, room)
		}
		if e.Ctx.Err() != nil {
			return nil, e.Ctx.Err()
		}
		if err != nil {
			d.report.Unreadable(row.line, err)
			continue
		}
		kept = append(kept, p)
		d.report.Add(&tuning.Sample{Line: row.line, Format: conversation.Format, IDs: p.IDs})
		d.add(c.Group * (len(p.IDs) + c.MaxTokens - 1))
	}
	d.write = func(w io.Writer) error {
		out := json.NewEncoder(w)
		for _, p := range kept {
			err := out.Encode(map[string]any{"prompt_ids": p.IDs, "prompt": p.Text, "answer": p.Answer})
			if err != nil {
				return err
			}
		}
		return nil
	}
	return d, nil
}
