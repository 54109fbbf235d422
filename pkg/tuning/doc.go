// Package tuning turns conversations into training samples: token ids, and a mask that says which of
// them the model is trained to produce.
//
// ParseRow reads a row in the forms that people have (OpenAI messages, prompt and completion, ShareGPT,
// alpaca, dolly, token ids) as a Conversation. A Renderer writes a conversation with the model's own chat
// template and encodes it as the tokenizer service does, so that the prompt of a sample is byte for byte
// the prompt in service. Pack puts samples into sequences of a fixed length.
//
// # What is trained
//
// The mask covers what the model has to write: the assistant's turns, from the end of the generation
// prompt to the token that ends the turn, which is inside. A model that never sees the end of a turn as a
// target never stops. For the same reason padding is masked by its position and never by its id: many
// vocabularies pad with the token that ends a turn.
//
// Where the template has generation blocks, these are what is trained. Elsewhere turns are found by
// rendering prefixes of the conversation: a turn begins where the prompt of its prefix ends, and ends with
// the first end-of-turn token behind its text. A token counts as trained if any of its bytes are.
//
// # What is refused
//
// A sample that would train nothing, is longer than the context length, or has a turn whose prompt the
// template writes differently in service is cut or refused, as Rules say. Every case is in the sample's
// Notes, with the line that it came from; Report counts them. Nothing is dropped silently.
//
// The package is pure: it reads no files and has no goroutines. Pack and Renderer give the same result for
// the same input. A Renderer may be used by several goroutines.
package tuning
