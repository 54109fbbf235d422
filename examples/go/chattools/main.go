// Command chattools lets a model call a function of this program and answers with the
// result.
//
//	go run ./examples/go/chattools -prompt "What is 12 times 34?"
//
// It uses the HTTP API, as any OpenAI client does: the first request offers a tool and
// requires a call, the second one sends the tool's result. The call's name and arguments
// are constrained to what was offered, so they always decode.
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

// tools offers one function, with a JSON Schema of its arguments.
const tools = `[{
  "type": "function",
  "function": {
    "name": "multiply",
    "description": "Multiplies two integers.",
    "parameters": {
      "type": "object",
      "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 9999},
        "b": {"type": "integer", "minimum": 0, "maximum": 9999}
      },
      "required": ["a", "b"],
      "additionalProperties": false
    },
    "strict": true
  }
}]`

// message is a turn of the chat.
type message struct {
	Role       string     `json:"role"`
	Content    string     `json:"content"`
	ToolCalls  []toolCall `json:"tool_calls,omitempty"`
	ToolCallID string     `json:"tool_call_id,omitempty"`
}

// toolCall is a call that the model wrote. Its arguments are JSON in a string.
type toolCall struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

func main() {
	base := flag.String("base", "http://127.0.0.1:8080/v1", "base URL of the HTTP API")
	prompt := flag.String("prompt", "What is 12 times 34?", "the user's message")
	flag.Parse()

	messages := []message{{Role: "user", Content: *prompt}}
	// Required makes even a model that never saw a tool write a call. With "auto" the
	// model decides.
	answer := ask(*base, messages, "required")
	messages = append(messages, answer)
	if len(answer.ToolCalls) == 0 {
		log.Fatal("the model called no tool")
	}
	for _, call := range answer.ToolCalls {
		var arguments struct{ A, B float64 } // a JSON Schema integer may be written 12.0
		if err := json.Unmarshal([]byte(call.Function.Arguments), &arguments); err != nil {
			log.Fatal(err)
		}
		result := arguments.A * arguments.B
		fmt.Printf("%s(%.0f, %.0f) = %.0f\n", call.Function.Name, arguments.A, arguments.B, result)
		messages = append(messages, message{Role: "tool", ToolCallID: call.ID, Content: fmt.Sprintf("%.0f", result)})
	}
	fmt.Println(ask(*base, messages, "none").Content)
}

// ask sends the chat so far and returns the assistant's turn.
func ask(base string, messages []message, toolChoice string) message {
	body, err := json.Marshal(map[string]any{
		"messages": messages, "tools": json.RawMessage(tools), "tool_choice": toolChoice,
		"parallel_tool_calls": false, "max_tokens": 256, "temperature": 0.8, "seed": 1,
		"frequency_penalty": 1, // keeps small models from repeating white space, which JSON allows
	})
	if err != nil {
		log.Fatal(err)
	}
	client := http.Client{Timeout: time.Minute}
	response, err := client.Post(base+"/chat/completions", "application/json", bytes.NewReader(body))
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
			Message message `json:"message"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(text, &completion); err != nil {
		log.Fatal(err)
	}
	if len(completion.Choices) != 1 {
		log.Fatalf("want one choice: %s", text)
	}
	return completion.Choices[0].Message
}
