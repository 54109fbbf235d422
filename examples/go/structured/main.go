// Command structured asks for an answer that matches a JSON Schema and decodes it into
// a Go struct.
//
//	go run ./examples/go/structured -prompt "A person in the novel:"
//
// It uses the HTTP API, as any OpenAI client does. Tokens that would leave the schema are
// masked while the answer is generated, so every complete answer matches the schema,
// whichever model writes it.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"time"
)

// schema describes the answer. Lengths are limited so that small models come to an end.
const schema = `{
  "type": "object",
  "properties": {
    "name": {"type": "string", "maxLength": 24},
    "age": {"type": "integer", "minimum": 0, "maximum": 120},
    "traits": {"type": "array", "items": {"enum": ["brave", "kind", "proud", "clever"]}, "minItems": 1, "maxItems": 3}
  },
  "required": ["name", "age", "traits"],
  "additionalProperties": false
}`

// person is what the schema describes.
type person struct {
	Name   string   `json:"name"`
	Age    float64  `json:"age"` // a JSON Schema integer may be written 12.0
	Traits []string `json:"traits"`
}

func main() {
	base := flag.String("base", "http://127.0.0.1:8080/v1", "base URL of the HTTP API")
	prompt := flag.String("prompt", "Describe a person in the novel as JSON.", "the user's message")
	flag.Parse()

	body, err := json.Marshal(map[string]any{
		"messages":    []any{map[string]any{"role": "user", "content": *prompt}},
		"max_tokens":  256,
		"temperature": 0.8,
		"seed":        1,
		// Keeps small models from repeating white space, which JSON allows.
		"frequency_penalty": 1,
		"response_format": map[string]any{
			"type":        "json_schema",
			"json_schema": map[string]any{"name": "person", "strict": true, "schema": json.RawMessage(schema)},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	client := http.Client{Timeout: time.Minute}
	response, err := client.Post(*base+"/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		log.Fatalf("%s: %s", response.Status, text)
	}
	var completion struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
			FinishReason string `json:"finish_reason"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(text, &completion); err != nil {
		log.Fatal(err)
	}
	if len(completion.Choices) != 1 || completion.Choices[0].FinishReason != "stop" {
		log.Fatalf("the answer is not complete: %s", text) // max_tokens was too small
	}
	var p person
	if err := json.Unmarshal([]byte(completion.Choices[0].Message.Content), &p); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q is %.0f years old and %v\n", p.Name, p.Age, p.Traits)
}
